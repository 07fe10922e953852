"""The client library. Needs httpx and pydantic, and nothing of the server."""

from onceonly_jobs.client.blocks import Lock as Lock
from onceonly_jobs.client.client import OnceOnly as OnceOnly
from onceonly_jobs.client.client import create_client as create_client
from onceonly_jobs.client.leases import Lease as Lease
from onceonly_jobs.client.leases import current_lease as current_lease

__all__ = ["Lease", "Lock", "OnceOnly", "create_client", "current_lease"]
