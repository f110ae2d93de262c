"""What computing asks of the machine: memory, precision, threads, stopping, files that are whole."""
