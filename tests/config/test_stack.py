"""Which processes there are, and that none of them keeps waiting what must not."""

from django.conf import settings

from config.stack import Stack


def queues() -> dict[str, list[str]]:
    """Of every queue, the processes that work through it."""
    found: dict[str, list[str]] = {}
    for process in Stack(settings.LORAYARD).processes:
        if "--queues" in process.argv:
            for queue in process.argv[process.argv.index("--queues") + 1].split(","):
                found.setdefault(queue, []).append(process.name)
    return found


def test_every_queue_that_tasks_are_sent_to_has_a_process() -> None:
    wanted = {route["queue"] for route in settings.CELERY_TASK_ROUTES.values()}
    assert wanted | {"celery"} == set(queues())


def test_sweeps_stand_in_no_queue_whose_emptiness_they_ask_about() -> None:
    asked = {route["queue"] for task, route in settings.CELERY_TASK_ROUTES.items() if task not in periodic()}
    assert {settings.CELERY_TASK_ROUTES[task]["queue"] for task in periodic()} & (asked | {"celery"}) == set()


def periodic() -> set[str]:
    return {entry["task"] for entry in settings.CELERY_BEAT_SCHEDULE.values()}


def test_ticks_share_neither_queue_nor_process_with_anything_that_could_take_long() -> None:
    routed = settings.CELERY_TASK_ROUTES
    queue = routed["jobs.tasks.tick_rollouts"]["queue"]
    assert [task for task, route in routed.items() if route["queue"] == queue] == ["jobs.tasks.tick_rollouts"]
    assert queue != "celery"
    assert [name for name in queues()[queue] if queues()["celery"] == [name]] == []
