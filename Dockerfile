# The server, for an external Postgres and object store; docker-compose.yml runs both. The image does not contain the embedded
# Postgres of `make run`, which is for machines without containers.

FROM rust:1.95-bookworm AS build
WORKDIR /build
# Queries are checked against the committed .sqlx, because there is no database during the build.
ENV SQLX_OFFLINE=true
COPY Cargo.toml Cargo.lock build.rs ./
COPY .cargo .cargo
COPY .sqlx .sqlx
COPY migrations migrations
COPY src src
# Not built, but the manifest names them.
COPY bench bench
COPY tests/it tests/it
# Downloaded and compiled crates are cached between builds. The sources are touched because cargo compares timestamps, and an
# older checkout would count as built. The program is copied out of the cached directory.
RUN --mount=type=cache,sharing=locked,target=/usr/local/cargo/registry \
    --mount=type=cache,sharing=locked,target=/build/target \
    touch src/lib.rs src/main.rs \
    && cargo build --profile dist --locked \
    && cp target/dist/acontextd /acontextd

FROM debian:bookworm-slim
# Certificates are for TLS to the database, the object store and model providers; the other packages are for sandboxes.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends bash bubblewrap ca-certificates procps python3 \
    && rm -rf /var/lib/apt/lists/*
RUN useradd --uid 10001 --no-create-home --home-dir /var/lib/acontextd --shell /usr/sbin/nologin acontextd \
    && install --directory --owner=acontextd --group=acontextd --mode=0700 /var/lib/acontextd
COPY --from=build /acontextd /usr/local/bin/acontextd
USER acontextd
# A container is not reachable on its loopback address. Any other address requires a token of at least 16 characters, and
# an external database requires a pepper.
ENV ACONTEXTD_HOST=0.0.0.0 ACONTEXTD_DATA_DIR=/var/lib/acontextd
EXPOSE 8029
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["acontextd", "health"]
ENTRYPOINT ["acontextd"]
