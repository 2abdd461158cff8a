"""Django's PostgreSQL backend, which tells the scope (`tenants.isolation`) to connections that assume a role.

A connection is told before its first query, and again when the scope has changed or a rollback may have undone it:
at most one round trip more per request and scope. What a connection was told in its last life is never relied on.

A pool keeps as many connections as OPTIONS["kept"] says for work that is done by a certain moment (`patience.within`),
which is the data plane's: whatever holds the others, and however long, its calls find one.
"""

from typing import Any, ClassVar

from django.db.backends.postgresql import base
from psycopg import sql
from psycopg.pq import TransactionStatus

from tenants.isolation import SETTING, in_scope
from tenants.postgresql import patience
from tenants.postgresql.patience import Share

ASSUME = sql.SQL("SET ROLE {}")
TELL = sql.SQL(f"SET {SETTING} = {{}}")


class DatabaseWrapper(base.DatabaseWrapper):
    _told: str | None = None  # None: unknown
    _share: Share | None = None  # that this connection counts in
    _shares: ClassVar[dict[str, Share]] = {}

    def connect(self) -> None:
        self._told = None
        super().connect()

    def get_new_connection(self, conn_params: Any) -> Any:
        if not self.pool or patience.in_time():
            return super().get_new_connection(conn_params)
        options = self.settings_dict["OPTIONS"]
        rest = options["pool"]["max_size"] - options.get("kept", 0)
        share = self._shares.setdefault(self.alias, Share(max(1, rest)))
        share.take()
        try:
            connection = super().get_new_connection(conn_params)
        except BaseException:
            share.give_back()
            raise
        self._share = share
        return connection

    def get_connection_params(self) -> dict[str, Any]:
        """libpq's, without what is ours."""
        params: dict[str, Any] = super().get_connection_params()
        params.pop("kept", None)
        return params

    def _close(self) -> Any:
        share, self._share = self._share, None
        try:
            return super()._close()  # type: ignore[misc]
        finally:
            if share is not None:
                share.give_back()

    def _cursor(self, name: Any = None) -> Any:
        self.ensure_connection()
        if self.settings_dict["OPTIONS"].get("assume_role"):
            self._tell(in_scope())
        return super()._cursor(name)  # type: ignore[misc]

    def _configure_role(self, connection: Any) -> bool:
        """As Django's, which asks the pool for another connection to quote the name with, while that makes this one."""
        role = self.settings_dict["OPTIONS"].get("assume_role")
        if role:
            connection.execute(ASSUME.format(sql.Identifier(role)))
        return bool(role)

    def _rollback(self) -> None:
        self._told = None
        super()._rollback()  # type: ignore[misc]

    def _savepoint_rollback(self, sid: str) -> None:
        super()._savepoint_rollback(sid)  # type: ignore[misc]
        self._told = None

    def _tell(self, scope: str) -> None:
        if scope == self._told or self.connection.info.transaction_status == TransactionStatus.INERROR:
            return
        with self.wrap_database_errors:
            self.connection.execute(TELL.format(sql.Literal(scope)))  # no query: a transaction may still be defined
        self._told = scope
