"""Asks an interpreter what it is. Arguments: the packages whose versions are wanted. Runs on Python 3.6 and later."""
import importlib.util
import json
import sys
import sysconfig

sys.path = [entry for entry in sys.path if entry]  # not the folder that we were started in


def version(name):
    import importlib.metadata

    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


supported = sys.version_info >= (3, 8)
print(
    json.dumps(
        {
            "executable": sys.executable,
            "version": list(sys.version_info[:3]),
            "implementation": sys.implementation.name,
            "free_threaded": bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
            "has_venv": all(importlib.util.find_spec(name) for name in ("venv", "ensurepip")),
            "packages": {name: version(name) for name in sys.argv[1:] if supported},
        }
    )
)
