"""The values that Ray Serve hands to a replica: what is read from them, and what is refused."""

import dataclasses

import pytest

from cpgan_ray.config.service import ServiceLimits
from cpgan_ray.deploy.bundle import Bundle
from cpgan_ray.deploy.service.keys import API_KEY
from cpgan_ray.deploy.service.served import Catalogue, served
from cpgan_ray.deploy.service.settings import BundleEntry, ReplicaSettings, entries_of, load_state, settings_of
from cpgan_ray.errors import InputError

KEY = "the-key-of-these-tests"


def test_settings_survive_their_json():
    settings = ReplicaSettings(port=8443, tls_cert="c", tls_key="k", limits=ServiceLimits(rate=7.5, max_codes=3))
    assert settings_of(settings.as_json()) == settings
    assert settings_of({}) == ReplicaSettings()
    assert settings_of({"host": "0.0.0.0", "behind_proxy": True}).host == "0.0.0.0"


@pytest.mark.parametrize(
    ("values", "words"),
    [({"prot": 1}, "args has 'prot'"), ({"limits": {"rat": 1}}, "args.limits"), ({"limits": {"rate": 0}}, "limits.rate is 0"),
     ({"limits": 1}, "args.limits"), ({"port": "8000"}, "args.port"), ({"host": 1}, "args.host"), ({"demo": "no"}, "args.demo"),
     ({"tls_cert": "c"}, "only one of"), ({"host": "0.0.0.0"}, "there is no TLS"), ({"behind_proxy": 1}, "args.behind_proxy")],
)  # fmt: skip
def test_settings_that_cannot_be_used_are_refused(values, words):
    with pytest.raises(InputError, match=words):
        settings_of(values)


def test_entries_are_paths_or_records():
    entry = BundleEntry("b", "0" * 64, 12.5)
    assert entries_of({"bundles": ["a", entry.as_json()]}) == [BundleEntry("a"), entry]


BAD_ENTRIES = [[], "a", [1], [{"path": 1}], [{"path": "a", "x": 1}], [{"path": "a", "until": "soon"}]]


@pytest.mark.parametrize("values", [{}, *({"bundles": entries} for entries in BAD_ENTRIES)])
def test_entries_that_are_none_are_refused(values):
    with pytest.raises(InputError, match="user_config"):
        entries_of(values)


def test_state_keeps_an_opened_bundle_and_its_new_end(bundle: Bundle, other: Bundle, monkeypatch):
    monkeypatch.setenv(API_KEY, KEY)
    opened = served(bundle)
    entries = [BundleEntry(str(other.path)), BundleEntry("moved away", bundle.digest, 99.0)]
    user_config = {"bundles": [entry.as_json() for entry in entries]}
    state = load_state(user_config, ReplicaSettings(), known={bundle.digest: opened}, page=None)
    assert state.catalogue.newest.bundle.digest == other.digest
    (old,) = (one for one in state.catalogue._by_start.values() if one.until == 99.0)
    assert old.session is opened.session
    assert len(state.keys) == 1


def test_state_of_another_bundle_than_the_stated_one_is_refused(bundle: Bundle, monkeypatch):
    monkeypatch.setenv(API_KEY, KEY)
    with pytest.raises(InputError, match="get the expected bundle"):
        load_state({"bundles": [{"path": str(bundle.path), "digest": "0" * 64}]}, ReplicaSettings(), known={}, page=None)
    monkeypatch.delenv(API_KEY)
    with pytest.raises(InputError, match="no API key"):
        load_state({"bundles": [str(bundle.path)]}, ReplicaSettings(), known={}, page=None)


def test_page_gets_only_the_present_bundles(bundle: Bundle, other: Bundle, monkeypatch):
    monkeypatch.setenv(API_KEY, KEY)
    seen: list[str] = []

    def page(bundles: list[Bundle]) -> tuple[dict, dict]:
        seen.extend(one.digest for one in bundles)
        return {}, {"X-Page": "1"}

    user_config = {"bundles": [str(other.path), {"path": str(bundle.path), "until": 1e12}]}
    assert load_state(user_config, ReplicaSettings(), known={}, page=page).file_headers == {"X-Page": "1"}
    assert seen == [other.digest]


def test_catalogue_refuses_two_bundles_with_the_same_first_digits(bundle: Bundle, other: Bundle):
    twin = dataclasses.replace(served(other), bundle=dataclasses.replace(other, digest=bundle.digest[:8] + "0" * 56))
    with pytest.raises(InputError, match="serve only one"):
        Catalogue([served(bundle), twin])
    with pytest.raises(InputError, match="no bundle to answer for"):
        Catalogue([])
