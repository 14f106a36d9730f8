# The command in a container: docker build -t butterfly-sdm .
#   docker run --rm -v "$PWD:/work" butterfly-sdm demo
# PyTorch comes with some 3 GB of CUDA. Without it: --build-arg PIP_EXTRA_INDEX_URL=URL with the
# address in the line for *CPU* on PyTorch's own page "Get Started".
# Linted, not built, by those who wrote it.
FROM python:3.12-slim
ARG PIP_EXTRA_INDEX_URL=
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY .ci/constraints.txt .ci/
COPY butterfly_sdm butterfly_sdm
COPY data_prep data_prep
RUN pip install --no-cache-dir --constraint .ci/constraints.txt ".[sources,search]" \
    && useradd --create-home --uid 1000 ecologist
USER 1000
WORKDIR /work
ENTRYPOINT ["butterfly-sdm"]
CMD ["--help"]
