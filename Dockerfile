# One image for every part: API, worker, scheduler, Flower and the commands of an operator.
FROM python:3.12-slim

RUN useradd --create-home onceonly
WORKDIR /app
COPY pyproject.toml README.md LICENSE ./
COPY onceonly_jobs ./onceonly_jobs
COPY migrations ./migrations
COPY examples ./examples
RUN pip install --no-cache-dir '.[server]'
# The deployment's own jobs. Not in the wheel: replace this folder with yours.
COPY workers ./workers
USER onceonly
ENTRYPOINT ["onceonly-jobs"]
