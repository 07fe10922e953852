"""What the account has used this month, and how much is left."""

from onceonly_jobs import OnceOnly

client = OnceOnly()

me = client.me()
print(f"Plan: {me['plan']}, key {me['key_preview']}")

usage = client.usage_all()
for kind, what in (("make", "duplicates blocked"), ("ai", "runs and leases started")):
    used = usage[kind]
    left = used["limit"] - used["usage"]
    print(f"{kind}: {used['usage']} of {used['limit']} {what} in {usage['month']}, {left} left")
    print(f"{kind}: {used['requests_total_month']} requests, {used['blocked_total_month']} refused")

print(f"One kind alone: {client.usage('make')['usage']}")
