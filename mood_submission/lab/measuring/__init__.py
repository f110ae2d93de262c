"""How long things take, and what scores mean among healthy scans."""
