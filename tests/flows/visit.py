"""A person's browser window: Chromium, and what it complains of."""

import re
from pathlib import Path

from playwright.sync_api import Browser, Page

BOUND = 5.0
# What a browser says of a page whose status is 4xx; the tests that provoke one say so.
STATUS = re.compile(r"Failed to load resource: the server responded with a status of (4\d\d)")
_WATCH = (
    "document.addEventListener('securitypolicyviolation', e => console.error('CSP', e.violatedDirective, e.blockedURI))"
)


class Visit:
    """One person's browser window; whatever the browser complains of is written down, and fails the test at its end."""

    def __init__(self, browser: Browser, folder: Path, **options: object) -> None:
        self.context = browser.new_context(**options)  # type: ignore[arg-type]
        self.context.add_init_script(_WATCH)
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(BOUND * 1000)
        self.folder = folder
        self.complaints: list[str] = []
        self.page.on("console", lambda m: self.complaints.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def picture(self, name: str) -> None:
        self.page.screenshot(path=self.folder / f"{name}.png", full_page=True)

    def sign_in(self, password: str = "demo") -> None:
        self.page.get_by_label("User name").fill("demo")
        self.page.get_by_label("Password").fill(password)
        self.page.get_by_role("button", name=re.compile("^Sign in")).last.click()

    def tab_to(self, selector: str) -> None:
        """Press Tab until the focus is there, as somebody without a mouse would."""
        for _ in range(60):
            self.page.keyboard.press("Tab")
            if self.page.evaluate("s => document.activeElement.matches(s)", selector):
                return
        raise AssertionError(f"Tab never reaches {selector}")
