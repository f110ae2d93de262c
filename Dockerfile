# The submission: docker build -t mood-submission .
# Runs with --read-only, --network none and as any user; see "Docker" in README.md.

# Any Debian with python3 and pip. The torch wheel of PyPI brings its own CUDA.
ARG BASE_IMAGE=python:3.12-slim-bookworm

# What goes into the image, made ready here: readable by every user whatever the checkout's file modes are, and compiled.
FROM ${BASE_IMAGE} AS files
WORKDIR /pins
COPY requirements.txt requirements.lock ./
# torch, whose hash depends on its build, and what it needs itself
RUN grep '^torch==' requirements.txt >torch.txt \
 && awk '/^[a-z]/ { wanted = /^(numpy|filelock|fsspec|jinja2|markupsafe|mpmath|networkx|setuptools|sympy|typing-extensions)==/ } wanted' \
        requirements.lock >torch.lock
COPY weights /weights
WORKDIR /workspace
COPY mood_submission mood_submission
COPY scripts scripts
COPY docker docker
COPY LICENSE ./
COPY run_sample_brain.sh run_sample_abdom.sh run_pixel_brain.sh run_pixel_abdom.sh ./
RUN chmod -R u=rwX,go=rX /pins /weights /workspace \
 && python3 -m compileall -q mood_submission

FROM ${BASE_IMAGE} AS packages
# Another index for pip beside PyPI: https://download.pytorch.org/whl/cpu makes an image without CUDA.
ARG PIP_EXTRA_INDEX_URL

# Every package but torch is taken only with a hash that requirements.lock names. Largest and changing least first: only
# another torch or numpy (which torch hands its tensors over to) makes this anew.
COPY --from=files /pins/torch.txt /pins/torch.lock /workspace/
RUN python3 -m pip install --no-cache-dir --disable-pip-version-check --root-user-action=ignore \
        --no-deps --require-hashes -r /workspace/torch.lock \
 && python3 -m pip install --no-cache-dir --disable-pip-version-check --root-user-action=ignore \
        -r /workspace/torch.txt \
 && site=$(python3 -c 'import torch, pathlib; print(pathlib.Path(torch.__file__).parents[1])') \
 && find "$site/torch" "$site/sympy" "$site/networkx" "$site/numpy" \
        -type d \( -name test -o -name tests \) -prune -exec rm -rf {} +

# The imports show that nothing needed went with the tests, and leave the standard library compiled.
COPY --from=files /pins/requirements.lock /workspace/
RUN python3 -m pip install --no-cache-dir --disable-pip-version-check --root-user-action=ignore \
        --no-deps --require-hashes -r /workspace/requirements.lock \
 && site=$(python3 -c 'import scipy, pathlib; print(pathlib.Path(scipy.__file__).parents[1])') \
 && find "$site/scipy" "$site/nibabel" "$site/pandas" -type d -name tests -prune -exec rm -rf {} + \
 && python3 -c 'import SimpleITK, isal.igzip, nibabel, onnxruntime, safetensors.torch, scipy.ndimage, torch, tqdm, deepbet'

# What of Python's is in the image, as a list that scanners read (CycloneDX).
FROM packages AS bill
ARG PIP_EXTRA_INDEX_URL
RUN python3 -m venv /bill \
 && /bill/bin/pip install --no-cache-dir --disable-pip-version-check cyclonedx-bom==7.5.0 \
 && /bill/bin/cyclonedx-py environment --output-format JSON --output-file /sbom.cdx.json "$(command -v python3)"

# The weights: the shipped ones or, with --build-arg WEIGHTS=FILE.safetensors, a model of one's own in place of those of its
# region, and with --build-arg GRAPHS=FILE.graphs what ONNX Runtime needs of it. FILE is a name in the build's folder;
# scripts/make_image.sh puts both there.
FROM packages AS weights
ARG WEIGHTS
ARG GRAPHS
COPY --from=files /weights /weights
COPY --from=files /workspace /workspace
COPY ${WEIGHTS:-LICENSE} ${GRAPHS:-LICENSE} /own/
WORKDIR /workspace
RUN [ -n "${WEIGHTS}" ] || [ -z "${GRAPHS}" ] || { \
        echo "GRAPHS=${GRAPHS}: expected WEIGHTS beside it, the model that these graphs are of, found none" >&2; exit 1; }
RUN [ -z "${WEIGHTS}" ] || { \
        named="/own/$(basename "${WEIGHTS}" .safetensors).graphs" \
     && { [ -z "${GRAPHS}" ] || [ "/own/${GRAPHS##*/}" = "$named" ] || mv "/own/${GRAPHS##*/}" "$named"; } \
     && PYTHONPATH=/workspace python3 docker/take_weights.py "/own/${WEIGHTS##*/}" /weights; }

FROM packages AS plain
RUN mkdir -p /mnt/data /mnt/pred
COPY --from=weights /weights /workspace/weights
COPY --from=bill /sbom.cdx.json /workspace/
COPY --from=files /workspace /workspace
WORKDIR /workspace

# /dev/shm is the one place besides /mnt/pred that can be written to under --read-only. CUDA's and torch's own kernel
# caches would end with the container: off.
ENV HOME=/dev/shm \
    TMPDIR=/dev/shm \
    XDG_CACHE_HOME=/dev/shm/cache \
    MPLCONFIGDIR=/dev/shm/matplotlib \
    TRITON_CACHE_DIR=/dev/shm/triton \
    TORCHINDUCTOR_CACHE_DIR=/dev/shm/inductor \
    CUDA_CACHE_DISABLE=1 \
    USE_PYTORCH_KERNEL_CACHE=0 \
    PYTHONDONTWRITEBYTECODE=1 \
    MOOD_PROCESSES=auto \
    MOOD_ENGINE=auto \
    ORT_DISABLE_TELEMETRY=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

# Last, so that a new revision makes no layer anew. The code is Apache-2.0, the weights are under the licences of their data.
ARG VERSION=0.2.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="mood-submission" \
      org.opencontainers.image.description="Anomaly detection in brain MRI and abdominal CT by latent space restoration" \
      org.opencontainers.image.licenses="Apache-2.0 AND CC-BY-SA-3.0 AND CC-BY-4.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

# docker build --target grand-challenge: for uploading to grand-challenge.org, which runs no image as root.
FROM plain AS grand-challenge
RUN install -d -m 755 /input /opt/ml/model && install -d -m 777 /output
ENV HOME=/tmp TMPDIR=/tmp
USER 1000:1000
ENTRYPOINT ["python3", "-m", "mood_submission", "grand-challenge"]
CMD []

# What the challenge runs, and everyone else; made where no target is asked for.
FROM plain
# Root unless --user says otherwise: the output folder may be anyone's, of mode 0700. Python is process 1, which the
# system does not let SIGTERM end by itself; SIGINT Python answers from its first moment on.
STOPSIGNAL SIGINT
ENTRYPOINT ["sh", "/workspace/docker/entrypoint.sh"]
CMD ["--help"]
