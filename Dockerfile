# whoami-router in a small image. It writes nothing and needs no user of its own: run it with a
# read-only root file system and without any capability, as docker-compose.yml does.
#
# Built twice it is the same: constraints.txt names each version, SOURCE_DATE_EPOCH each time. What
# can still change is the image that it stands on; by its digest that cannot, either:
#
#   docker build --build-arg BASE=python:3.13-slim@sha256:... --tag whoami-router .

ARG BASE=python:3.13-slim

FROM $BASE AS build
WORKDIR /src
COPY constraints.txt ./
RUN pip install --root-user-action=ignore --constraint constraints.txt hatchling
COPY pyproject.toml README.md LICENSE ./
COPY nginx nginx
COPY docs docs
COPY deploy deploy
COPY whoami_router whoami_router
# 1980, where the times of a wheel begin. With it Python's compiled files name their source by its
# hash, not by its time.
ARG SOURCE_DATE_EPOCH=315532800
# Without isolation, or the newest hatchling would be fetched. The environment is all that is
# shipped of this stage: no pip in it, no build tool, no sources.
RUN pip wheel --no-build-isolation --no-deps --wheel-dir /wheels . \
    && python -m venv --without-pip /venv \
    && pip --python /venv install --only-binary :all: --constraint constraints.txt /wheels/*.whl \
    && mkdir /image && mv /venv /image \
    && find /image -exec touch --no-dereference --date=@$SOURCE_DATE_EPOCH {} +

FROM $BASE
# (!) Not `/image/venv /venv`: a directory that COPY makes itself has the time of the build.
COPY --from=build /image /
# The default, loopback, is out of nginx's reach here. For nginx only: whoever else reaches this
# port can have Synapse record any address as a client's.
ENV PATH=/venv/bin:$PATH \
    WHOAMI_ROUTER_LISTEN=0.0.0.0:9009
EXPOSE 9009

# By number, or Kubernetes' runAsNonRoot cannot tell that it is not root.
USER 65532:65532

# (!) Asks /health and not /ready: while Synapse is down the service still routes those it
# remembers, and a restart for being "unhealthy" would make it forget them.
HEALTHCHECK --interval=15s --timeout=10s --start-period=10s \
    CMD ["whoami-router", "check", "--only", "router"]

ENTRYPOINT ["whoami-router"]
CMD ["serve"]

ARG VERSION=0.1.0
ARG REVISION
ARG SOURCE
LABEL org.opencontainers.image.title="whoami-router" \
    org.opencontainers.image.description="Tells a reverse proxy which Matrix user a request belongs to, so that all of a user's syncs reach one Synapse worker" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="$VERSION" \
    org.opencontainers.image.revision="$REVISION" \
    org.opencontainers.image.source="$SOURCE"
