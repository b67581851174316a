# The daemon with every driver. The settings file belongs at /etc/headrace/headrace.toml; relative paths start there.
FROM python:3.13-slim AS build
WORKDIR /src
COPY . .
RUN python -m venv /opt/headrace \
 && /opt/headrace/bin/pip install --no-cache-dir ".[postgres,minio,s3]"

FROM python:3.13-slim
COPY --from=build /opt/headrace /opt/headrace
RUN useradd --system --uid 10001 headrace \
 && install -d -o headrace -m 700 /var/lib/headrace
ENV PATH=/opt/headrace/bin:$PATH
WORKDIR /etc/headrace
USER headrace
VOLUME /var/lib/headrace
# SIGTERM, which Docker sends, drains; give it the daemon's `grace` and a little more (docker stop -t).
ENTRYPOINT ["headrace"]
CMD ["run"]
