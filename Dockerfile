# nlzoo's programs, for NVIDIA's GPUs or for CPUs:
#
#   docker build --target cuda --tag nlzoo .
#   docker build --target cpu --build-arg TORCH_INDEX=ADDRESS --tag nlzoo:cpu .
#   docker run --rm --gpus all --ipc host --user "$(id -u):$(id -g)" --volume "$PWD:/work" \
#       nlzoo fit --recipe videos_finetune --data videos
#
# ADDRESS is PyTorch's list of wheels without CUDA (pytorch.org, "Get Started", CPU). Without it the
# image works on CPUs as well, and is 5 GB larger.

FROM python:3.12-slim-bookworm AS wheel
WORKDIR /source
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.12-slim-bookworm AS base
# A compiler for torch.compile; Debian keeps the newest of its versions only.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/* \
    && install --directory --mode 1777 /home/nlzoo
# any user may write where caches are, and has a name
ENV HOME=/home/nlzoo USER=nlzoo
WORKDIR /work
ENTRYPOINT ["nlzoo"]
CMD ["--help"]

FROM base AS cpu
ARG TORCH_INDEX=""
RUN --mount=from=wheel,source=/wheels,target=/wheels \
    PIP_INDEX_URL="$TORCH_INDEX" pip install --no-cache-dir "torch>=2.10" "torchvision>=0.25" \
    && pip install --no-cache-dir "$(ls /wheels/*.whl)[openvino,stream]"
USER 65534

FROM base AS cuda
RUN --mount=from=wheel,source=/wheels,target=/wheels \
    pip install --no-cache-dir "$(ls /wheels/*.whl)[tensorrt,openvino,stream]"
USER 65534
