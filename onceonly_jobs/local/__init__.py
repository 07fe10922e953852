"""Everything on one machine: embedded PostgreSQL and Redis, and the supervisor behind `onceonly-jobs up`."""
