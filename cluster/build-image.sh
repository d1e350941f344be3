#!/bin/sh
# Builds the image with docker, or with buildah if docker does not run. Variables: VARIANT (cpu or gpu), TAG,
# BASE_IMAGE, TORCH_INDEX_URL (empty: pip's default index). Arguments are passed to the builder: --volume,
# --build-arg ...
set -eu
cd "$(dirname "$0")/.."

variant=${VARIANT:-cpu}
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)
case $variant in
    cpu) suffix= torch_index=${TORCH_INDEX_URL-https://download.pytorch.org/whl/cpu} ;; # without gigabytes of CUDA
    gpu) suffix=-gpu torch_index=${TORCH_INDEX_URL-} ;;
    *) echo "VARIANT is '$variant'; valid are cpu, gpu" >&2; exit 2 ;;
esac

set -- --tag "${TAG:-infogan-ray:$version$suffix}" --build-arg VARIANT="$variant" \
    --build-arg TORCH_INDEX_URL="$torch_index" ${BASE_IMAGE:+--build-arg BASE_IMAGE="$BASE_IMAGE"} "$@" .
if docker version > /dev/null 2>&1; then
    exec docker build "$@"
elif command -v buildah > /dev/null; then
    # Buildah's default format, OCI, has no HEALTHCHECK. Without --layers, every code change would reinstall torch.
    exec buildah build --format docker --layers "$@"
fi
echo "docker does not run and buildah is not installed: start docker, or install buildah" >&2
exit 1
