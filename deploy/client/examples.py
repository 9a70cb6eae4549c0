"""What a user of the published client does first, with nothing configured but the environment."""

import sys

if sys.version_info < (3, 12):
    # The client cannot be imported otherwise, whatever it talks to.
    import typing

    import typing_extensions

    typing.TypedDict = typing_extensions.TypedDict

from leap0 import Leap0Client, NetworkPolicyMode


def expect(what, held):
    print(f"  {'held' if held else 'BROKEN'}  {what}")
    if not held:
        sys.exit(f"client: {what}")


def fails_with(status, call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except Exception as error:
        return getattr(error, "status_code", None) == status
    return False


def quickstart(client):
    sandbox = client.sandboxes.create()
    try:
        result = sandbox.process.execute(command="echo hello; echo oops >&2", cwd="/home/user", timeout=30)
        expect("a command ran", (result.exit_code, result.stdout, result.stderr) == (0, "hello\n", "oops\n"))
        result = sandbox.process.execute(command="echo $WHO; exit 3", env={"WHO": "me"})
        expect("environment and exit code", (result.exit_code, result.stdout) == (3, "me\n"))
        sandbox.filesystem.write_file(path="/workspace/deep/app.py", content="print('hé')\n", permissions="0640")
        expect("a file came back", sandbox.filesystem.read_file(path="/workspace/deep/app.py") == "print('hé')\n")
        listed = sandbox.filesystem.ls(path="/workspace", recursive=True).items
        expect("it is listed", "/workspace/deep/app.py" in [item.path for item in listed])
        expect("what exists and what does not", sandbox.filesystem.exists(path="/workspace/deep")
               and not sandbox.filesystem.exists(path="/nowhere"))
        expect("reading what is not there is a 404", fails_with(404, sandbox.filesystem.read_file, path="/nowhere"))
    finally:
        sandbox.delete()
    expect("a deleted sandbox is a 404", fails_with(404, client.sandboxes.get, sandbox.id))


def snapshots(client):
    sandbox = client.sandboxes.create(vcpu=1, memory=512, timeout=600, env_vars={"STAGE": "one"})
    sandbox.process.execute(command="echo kept > /dev/shm/memory; echo kept > /workspace/disk")
    snapshot = sandbox.create_snapshot(name="workspace-warm")
    expect("a snapshot has its name", (snapshot.name, snapshot.memory) == ("workspace-warm", 512))
    expect("the same name is a 409", fails_with(409, sandbox.create_snapshot, name="workspace-warm"))
    sandbox.process.execute(command="echo changed > /dev/shm/memory")

    restored = client.snapshots.restore(
        snapshot_name="workspace-warm",
        auto_pause=True,
        timeout=30,
        network_policy={"mode": NetworkPolicyMode.CUSTOM, "allow_cidrs": ["1.2.3.4/32"]},
    )
    expect("the restored one is new and runs", restored.id != sandbox.id and restored.state == "running")
    seen = restored.process.execute(command="cat /dev/shm/memory /workspace/disk; echo $STAGE").stdout
    expect("with memory, disk and environment of the instant", seen == "kept\nkept\none\n")
    expect("its policy is the one asked for", restored.network_policy["allow_cidrs"] == ["1.2.3.4/32"])
    expect("a snapshot in use is not deleted", fails_with(409, client.snapshots.delete, snapshot.id))
    restored.delete()

    ids = [s.id for s in client.snapshots.list(query="warm").items]
    expect("snapshots are listed", ids == [snapshot.id])
    last = sandbox.create_snapshot(kill_sandbox_after=True)
    expect("a name is made up where none is given", bool(last.name))
    client.snapshots.delete(last.id)
    client.snapshots.delete(snapshot.id)
    expect("a deleted snapshot does not restore", fails_with(404, client.snapshots.restore, snapshot_name="workspace-warm"))
    wait_gone(client, sandbox.id)


def wait_gone(client, sandbox_id):
    import time

    for _ in range(100):
        if fails_with(404, client.sandboxes.get, sandbox_id):
            break
        time.sleep(0.1)
    expect("kill_sandbox_after ended the source", fails_with(404, client.sandboxes.get, sandbox_id))


with Leap0Client() as leap0:
    quickstart(leap0)
    snapshots(leap0)
