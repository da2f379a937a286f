# The agent in a container: `docker build -t dataplane-agent .`
# It runs as a user without a name or a shell, on a read-only root file system; all it writes is under /var/lib/dataplane-agent.
# docs/containers.md has how to run it; tests/it/containers tries it without a container engine.

FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
# What `--version` and the metric build_info name: --build-arg DATAPLANE_COMMIT=$(git rev-parse --short HEAD)
ARG DATAPLANE_COMMIT=unknown
RUN DATAPLANE_COMMIT="$DATAPLANE_COMMIT" cargo build --release --locked --bin dataplane-agent \
 && install -D --strip target/release/dataplane-agent /image/usr/bin/dataplane-agent \
 && install -d -m 0700 /image/var/lib/dataplane-agent

# glibc, libgcc and the authorities' certificates; no shell, no package manager.
FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /image/usr /usr
COPY --from=build --chown=65532:65532 /image/var/lib/dataplane-agent /var/lib/dataplane-agent
# By number, so that an orchestrator sees that it is not root.
USER 65532:65532
WORKDIR /var/lib/dataplane-agent
# A container has its own network: what is published decides who reaches the port. TRUSTED_IPS narrows it further.
ENV OUTBOX_DIR=/var/lib/dataplane-agent/outbox SERVER_HOST=0.0.0.0
VOLUME ["/var/lib/dataplane-agent"]
EXPOSE 8010
STOPSIGNAL SIGTERM
# Whether the process works, as /healthz: an outage, a full outbox or a Redis that is away is no reason to restart it.
HEALTHCHECK --interval=30s --timeout=10s --start-period=300s --retries=3 \
    CMD ["/usr/bin/dataplane-agent", "top", "--once", "--interval", "0.1"]
ENTRYPOINT ["/usr/bin/dataplane-agent"]
CMD ["run"]
