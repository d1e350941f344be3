# One image for a Ray node (`ray start --block`, KubeRay) and for the command line (`infogan ...`): `make image`.
#
# BASE_IMAGE may be any Debian or Ubuntu image with python3.11 and its venv module. KubeRay wants bash too and, if it is
# too old to probe by HTTP, wget; Ray's images have both. The CUDA in them is not torch's, whose wheels bring their own.
ARG VARIANT=cpu
ARG BASE_IMAGE=docker.io/rayproject/ray:2.60.0-py311-${VARIANT}
FROM ${BASE_IMAGE}

USER 0

# Ray's images have this user already. Login shells set PATH anew, and Ray's .bashrc puts another python first.
RUN { getent passwd 1000 || useradd --uid 1000 --gid 100 --create-home --shell /bin/bash ray; } \
    && install -d -o 1000 -g 100 /workspace \
    && echo "export PATH=/opt/infogan/bin:\$PATH" > /etc/profile.d/infogan.sh \
    && echo ". /etc/profile.d/infogan.sh" >> "$(awk -F: '$3 == 1000 { print $6 }' /etc/passwd)/.bashrc"

# An environment of our own: the versions of constraints.txt whatever the base has, and only root can change it.
ENV PATH=/opt/infogan/bin:$PATH

# Another index for torch alone, such as PyTorch's for the CPU; empty is pip's default, whose wheels bring CUDA along.
# Never a URL with credentials: arguments stay in the image's history. Mount a pip.conf for those.
ARG TORCH_INDEX_URL=
WORKDIR /opt/infogan/src
COPY pyproject.toml constraints.txt ./
RUN python3.11 -m venv /opt/infogan \
    && pip install --no-cache-dir --constraint constraints.txt \
        ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"} torch torchvision \
    && python -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
        print(*p["dependencies"], *p["optional-dependencies"]["search"], \
        *p["optional-dependencies"]["serve"], sep="\n")' > requirements.txt \
    && pip install --no-cache-dir --constraint constraints.txt --requirement requirements.txt

COPY README.md LICENSE ./
COPY infogan_ray infogan_ray
RUN pip install --no-cache-dir --no-deps . && rm -r build infogan_ray.egg-info

WORKDIR /workspace
COPY --chown=1000:100 tuning tuning

# Ray lets in whoever knows the token. It comes at run time, as RAY_AUTH_TOKEN or a file that RAY_AUTH_TOKEN_PATH names.
ENV RAY_AUTH_MODE=token

# By number, so that Kubernetes can see that it is not root (runAsNonRoot).
USER 1000

# A node is healthy if its agent says so of the raylet and, on the head, of the GCS: `ray start --block` ends by itself
# when one of them dies, not when one hangs. `infogan ...` listens nowhere, and is healthy until it ends. Importing Ray,
# as `ray health-check` and `infogan doctor` do, would take seconds of a core each time. Kubernetes ignores this line.
# hadolint ignore=DL3025 # a shell is needed to look at what runs here
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=3 \
    CMD case "$(tr '\0' ' ' < /proc/1/cmdline)" in *"ray start"*) \
        python -c 'from urllib.request import urlopen; urlopen("http://127.0.0.1:52365/api/healthz", timeout=8)' ;; esac

# No ENTRYPOINT: KubeRay, `docker run IMAGE ray start ...` and `docker run IMAGE infogan ...` name their own command.
CMD ["infogan", "--help"]

ARG BASE_IMAGE
LABEL org.opencontainers.image.title="infogan-ray" \
      org.opencontainers.image.description="Distributed InfoGAN training on Ray" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.base.name="${BASE_IMAGE}"
