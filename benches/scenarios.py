"""All scenarios of the flat tail, in the order they run."""

import shutil

import holding
import molds
import parallel
import reloading
import tails


def build():
    scenarios = [*tails.build(), *parallel.build(), *holding.build(), *reloading.build(), *molds.build()]
    return {scenario.name: scenario for scenario in scenarios}


def missing(env, scenario):
    """Why it cannot run here, or None."""
    if "openloop" in scenario.needs and "openloop" not in env.built:
        return "the generator is not built: no cargo"
    if "wrk" in scenario.needs and not shutil.which("wrk"):
        return "wrk is not installed"
    return None
