"""The triggers that keep the log append-only. Written by hand, since pgtrigger's own can be told by a session to look
away (`pgtrigger.ignore`), by whatever role it runs as."""

from django.db import migrations

GUARDED = ("event", "chain", "checkpoint", "leaf", "segment")

FUNCTIONS = """
CREATE FUNCTION audit_is_append_only() RETURNS trigger LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
    RAISE EXCEPTION '% is append-only: % is refused', TG_TABLE_NAME, TG_OP USING ERRCODE = 'insufficient_privilege';
END $$;

-- An event may leave when a segment holds it, by the hand of the table's owner, who has to say so.
CREATE FUNCTION audit_event_leaves() RETURNS trigger LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
    IF current_setting('lorayard.audit_sealing', true) = 'on'
       AND pg_has_role(current_user, (SELECT relowner FROM pg_class WHERE oid = TG_RELID), 'USAGE')
       AND EXISTS (SELECT FROM audit_segment s
                   WHERE s.chain_id = OLD.chain_id AND OLD.number BETWEEN s.first AND s.last)
    THEN
        RETURN OLD;
    END IF;
    RAISE EXCEPTION '% is append-only: % is refused', TG_TABLE_NAME, TG_OP USING ERRCODE = 'insufficient_privilege';
END $$;

-- An event comes behind the head of its chain, and nowhere else.
CREATE FUNCTION audit_event_follows() RETURNS trigger LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM audit_chain c
                   WHERE c.id = NEW.chain_id AND c.length = NEW.number - 1 AND c.head = NEW.previous)
    THEN
        RAISE EXCEPTION 'event % does not follow the head of its chain', NEW.number USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END $$;

-- A chain begins empty, and its head moves by one: on to the event that follows it.
CREATE FUNCTION audit_chain_grows() RETURNS trigger LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
    IF TG_OP = 'INSERT' AND NEW.length = 0 AND NEW.head = '' THEN
        RETURN NEW;
    ELSIF TG_OP = 'UPDATE' AND NEW.id = OLD.id AND NEW.length = OLD.length + 1
       AND EXISTS (SELECT FROM audit_event e WHERE e.chain_id = NEW.id AND e.number = NEW.length
                   AND e.previous = OLD.head AND e.hash = NEW.head)
    THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION 'the head of a chain only moves on to its next event' USING ERRCODE = 'check_violation';
END $$;

CREATE TRIGGER append_only BEFORE UPDATE ON audit_event
    FOR EACH ROW EXECUTE FUNCTION audit_is_append_only();
CREATE TRIGGER leaves BEFORE DELETE ON audit_event
    FOR EACH ROW EXECUTE FUNCTION audit_event_leaves();
CREATE TRIGGER follows BEFORE INSERT ON audit_event
    FOR EACH ROW EXECUTE FUNCTION audit_event_follows();
CREATE TRIGGER grows BEFORE INSERT OR UPDATE ON audit_chain
    FOR EACH ROW EXECUTE FUNCTION audit_chain_grows();
CREATE TRIGGER append_only BEFORE DELETE ON audit_chain
    FOR EACH ROW EXECUTE FUNCTION audit_is_append_only();
"""

ROWS = "\n".join(
    f"CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON audit_{table} "
    "FOR EACH ROW EXECUTE FUNCTION audit_is_append_only();"
    for table in ("checkpoint", "leaf", "segment")
)
TRUNCATES = "\n".join(
    f"CREATE TRIGGER no_truncate BEFORE TRUNCATE ON audit_{table} "
    "FOR EACH STATEMENT EXECUTE FUNCTION audit_is_append_only();"
    for table in GUARDED
)

REMOVE = "DROP FUNCTION audit_is_append_only, audit_event_leaves, audit_event_follows, audit_chain_grows CASCADE;"


class Migration(migrations.Migration):
    dependencies = [("audit", "0002_checkpoints_and_segments")]

    operations = [migrations.RunSQL(FUNCTIONS + ROWS + "\n" + TRUNCATES, REMOVE)]
