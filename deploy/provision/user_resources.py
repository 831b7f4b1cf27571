"""
Resources of the user database of a host.
"""

from typing import Literal

from deploy.host.protocol import FactQuery, Facts, UserFacts
from deploy.provision.resource import Difference, Resource


class User(Resource):
    """
    A system user without login and without other groups, with a group of the same name.
    """

    kind: Literal["user"] = "user"
    user: str
    home: str = "/nonexistent"
    shell: str = "/usr/sbin/nologin"

    @property
    def name(self) -> str:
        return f"user {self.user}"

    @property
    def query(self) -> FactQuery:
        return FactQuery(users=(self.user,))

    def difference(self, facts: Facts) -> Difference | None:
        found = facts.users[self.user]
        if found is None:
            return Difference(change="create")
        wrong = []
        if found.group != self.user:
            wrong.append(f"group {found.group} → {self.user}")
        if found.groups:
            wrong.append(f"leave {', '.join(found.groups)}")
        if found.home != self.home:
            wrong.append(f"home {found.home} → {self.home}")
        if found.shell != self.shell:
            wrong.append(f"shell {found.shell} → {self.shell}")
        if not found.is_locked:
            wrong.append("lock its password")
        return Difference(change=", ".join(wrong)) if wrong else None

    def usermod_options(self, found: UserFacts) -> tuple[str, ...]:
        """
        Return the options of usermod(8) that bring a user with *found* here.

        Only what differs: usermod refuses some changes while processes of the user run.
        """
        options: list[str] = []
        if found.group != self.user:
            options += ["--gid", self.user]
        if found.groups:
            options += ["--groups", ""]
        if found.home != self.home:
            options += ["--home", self.home]
        if found.shell != self.shell:
            options += ["--shell", self.shell]
        if not found.is_locked:
            options += ["--lock"]
        return tuple(options)
