# The service of FinCompress with the packaged models:
#   docker build -t fincompress .
#   docker run --rm -p 8080:8080 fincompress
FROM python:3.12-slim AS build
WORKDIR /source
COPY settings.ini setup.py pyproject.toml README.md LICENSE ./
COPY fincompress ./fincompress
RUN python -m venv /opt/fincompress \
    && /opt/fincompress/bin/pip install --no-cache-dir ".[serve]"

FROM python:3.12-slim
COPY --from=build /opt/fincompress /opt/fincompress
ENV PATH="/opt/fincompress/bin:$PATH" PYTHONUNBUFFERED=1
WORKDIR /tmp
# a number, so that a cluster can see that it is not root
USER 10001
EXPOSE 8080
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "from urllib.request import urlopen; \
urlopen('http://127.0.0.1:8080/health', timeout=4)"]
# as a list: the process itself gets the signal that stops it
CMD ["fincompress", "serve", "--host", "0.0.0.0"]
