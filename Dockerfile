# whoami-router in a small image. It writes nothing and needs no user of its own: run it with a
# read-only root file system and without any capability, as docker-compose.yml does.

FROM python:3.13-slim AS base

FROM base AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY whoami_router whoami_router
# The environment is all that is shipped of this stage: no pip in it, no build tool, no sources.
RUN python -m venv --without-pip /venv \
    && pip --python /venv install --no-cache-dir .

FROM base
COPY --from=build /venv /venv
# The default, loopback, is out of nginx's reach here. For nginx only: whoever else reaches this
# port can have Synapse record any address as a client's.
ENV PATH=/venv/bin:$PATH \
    WHOAMI_ROUTER_LISTEN=0.0.0.0:9009
EXPOSE 9009

# By number, or Kubernetes' runAsNonRoot cannot tell that it is not root.
USER 65532:65532

# (!) /health and not /ready: while Synapse is down the service still routes those it remembers,
# and a restart for being "unhealthy" would make it forget them.
HEALTHCHECK --interval=15s --timeout=5s --start-period=10s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:9009/health', timeout=3)"]

ENTRYPOINT ["whoami-router"]
CMD ["serve"]
