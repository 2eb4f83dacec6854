"""What a person pays for the sample service. No bookkeeping stands behind it: all follows from the owner's name."""

import hashlib
from datetime import date
from typing import Any

from django.utils import timezone

from todos.bearer import Principal

_PLANS = (("solo", "4.00"), ("team", "12.00"), ("studio", "29.00"))
_SHOWN_INVOICES = 3


def billing_of(principal: Principal) -> dict[str, Any]:
    """Plan, card and invoices of `principal`: for one person the same on every machine, any number of times a day."""
    digest = hashlib.sha256(f"{principal.issuer}|{principal.subject}".encode()).digest()
    plan, amount = _PLANS[digest[0] % len(_PLANS)]
    day = 1 + digest[1] % 28
    months = _months_before(timezone.localdate(), day)
    return {
        "owner": principal.subject,
        "plan": plan,
        "currency": "EUR",
        "amount": amount,
        "card": f"ending in {int.from_bytes(digest[2:4], 'big') % 10_000:04}",
        "next_invoice": _month_after(months[0]),
        "invoices": [
            {"number": f"{issued:%Y%m}-{digest[4:7].hex()}", "issued": issued, "amount": amount, "paid": True}
            for issued in months
        ],
    }


def _months_before(today: date, day: int) -> list[date]:
    """The last days of issue up to today, newest first."""
    issued = today.replace(day=day)
    if issued > today:
        issued = _month_before(issued)
    found = [issued]
    while len(found) < _SHOWN_INVOICES:
        found.append(_month_before(found[-1]))
    return found


def _month_before(day: date) -> date:
    return day.replace(year=day.year - 1, month=12) if day.month == 1 else day.replace(month=day.month - 1)


def _month_after(day: date) -> date:
    return day.replace(year=day.year + 1, month=1) if day.month == 12 else day.replace(month=day.month + 1)
