"""An event moves its chain's head itself: one statement less per change, and the two can't come apart."""

from django.db import migrations

FORWARDS = """
DROP TRIGGER follows ON public.audit_event;
DROP FUNCTION public.audit_event_follows();

-- An event comes behind the head of its chain, and nowhere else; it is the head then.
CREATE FUNCTION public.audit_event_follows() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE public.audit_chain SET length = NEW.number, head = NEW.hash
    WHERE id = NEW.chain_id AND length = NEW.number - 1 AND head = NEW.previous;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'event % does not follow the head of its chain', NEW.number USING ERRCODE = 'check_violation';
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER follows AFTER INSERT ON public.audit_event
    FOR EACH ROW EXECUTE FUNCTION public.audit_event_follows();

CREATE OR REPLACE FUNCTION public.audit_chain_grows() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' AND NEW.length = 0 AND NEW.head = '' THEN
        RETURN NEW;
    ELSIF TG_OP = 'UPDATE' AND NEW.id = OLD.id AND NEW.length = OLD.length + 1
       AND EXISTS (SELECT FROM public.audit_event e WHERE e.chain_id = NEW.id AND e.number = NEW.length
                   AND e.previous = OLD.head AND e.hash = NEW.head)
    THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION 'the head of a chain only moves on to its next event' USING ERRCODE = 'check_violation';
END $$;
"""

BACKWARDS = """
DROP TRIGGER follows ON public.audit_event;
CREATE OR REPLACE FUNCTION public.audit_event_follows() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM public.audit_chain c
                   WHERE c.id = NEW.chain_id AND c.length = NEW.number - 1 AND c.head = NEW.previous)
    THEN
        RAISE EXCEPTION 'event % does not follow the head of its chain', NEW.number USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER follows BEFORE INSERT ON public.audit_event
    FOR EACH ROW EXECUTE FUNCTION public.audit_event_follows();
"""


class Migration(migrations.Migration):
    dependencies = [("audit", "0004_leaf_path")]

    operations = [migrations.RunSQL(FORWARDS, BACKWARDS)]
