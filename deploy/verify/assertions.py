"""
The assertions of `inv verify`, and those that a fleet file implies for each of its hosts.  Pure.

What ran is counted against this list, never against what pytest collected: a setting or a plugin
that drops an assertion would drop it from there too.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

Expected = Mapping[str, object]  # of one host, as `expectations` returns them


def _always(expected: Expected) -> bool:
    return True


def _has_tls(expected: Expected) -> bool:
    return bool(expected["tls"])


def _is_plain(expected: Expected) -> bool:
    return not expected["tls"]


def _needs_driver(expected: Expected) -> bool:
    return bool(expected["needs_driver"])


def _pins_driver(expected: Expected) -> bool:
    return expected["driver_version"] is not None


def _has_data_disk(expected: Expected) -> bool:
    return expected["storage_root"] is not None


@dataclass(frozen=True, slots=True)
class Assertion:
    """
    Attributes:
        test: Name of its function, unique among all assertions.
        cases: Number of values that it is parametrized with, on each host.
        holds_for: Whether the expected values of a host imply it.
    """

    test: str
    cases: int = 1
    holds_for: Callable[[Expected], bool] = _always


@dataclass(frozen=True, slots=True)
class Suite:
    """
    Attributes:
        folder: Has the test files of *assertions*, and their conftest.py.
    """

    folder: Path
    assertions: tuple[Assertion, ...]

    def implied(self, expected: Expected) -> dict[str, int]:
        """
        Return the number of cases of each assertion that a host with *expected* values has.
        """
        return {one.test: one.cases for one in self.assertions if one.holds_for(expected)}


SUITE = Suite(
    folder=Path(__file__).parents[2] / "tests" / "testinfra",
    assertions=(
        Assertion("test_the_certificate_lasts", holds_for=_has_tls),
        Assertion("test_it_is_the_one_on_the_disk", holds_for=_has_tls),
        Assertion("test_its_key_is_for_root_alone", holds_for=_has_tls),
        Assertion("test_no_certificate_is_left_where_the_port_is_plain", holds_for=_is_plain),
        Assertion("test_old_versions_of_tls_are_refused", holds_for=_has_tls),
        Assertion("test_the_timer_runs_and_starts_at_boot"),
        Assertion("test_a_reboot_is_met_before_haproxy_and_the_slots"),
        Assertion("test_it_was_tested_with_the_present_program_and_units"),
        Assertion("test_no_test_was_left_half_done", cases=2),
        Assertion("test_the_loaded_driver_is_one_that_the_row_allows", holds_for=_needs_driver),
        Assertion("test_the_loaded_driver_is_that_of_the_fleet_file", holds_for=_pins_driver),
        Assertion("test_the_packages_of_the_driver_are_complete_and_on_hold", 1, _pins_driver),
        Assertion("test_torch_was_compared_on_all_gpus", holds_for=_needs_driver),
        Assertion("test_the_state_of_the_gpus_is_set_at_boot", holds_for=_needs_driver),
        Assertion("test_haproxy_runs_and_starts_at_boot"),
        Assertion("test_its_configuration_is_valid"),
        Assertion("test_it_runs_with_the_configuration_on_the_disk"),
        Assertion("test_its_socket_is_for_root_alone"),
        Assertion("test_it_alone_listens_on_the_public_port"),
        Assertion("test_both_slots_are_its_servers"),
        Assertion("test_the_environment_of_the_row_is_complete"),
        Assertion("test_its_packages_agree"),
        Assertion("test_code_and_weights_are_for_the_runtime_alone"),
        Assertion("test_the_host_program_answers"),
        Assertion("test_the_unit_is_loaded_as_it_is_on_the_disk"),
        Assertion("test_the_sandbox_is_tight"),
        Assertion("test_secrets_are_for_root_alone"),
        Assertion("test_no_secret_is_left_over"),
        Assertion("test_api_keys_are_for_the_runtime_alone"),
        Assertion("test_api_keys_are_a_list"),
        Assertion("test_configuration_is_readable_by_the_runtime"),
        Assertion("test_what_gets_traffic_is_ready"),
        Assertion("test_releases_are_what_was_signed"),
        Assertion("test_the_socket_of_a_slot_is_haproxys"),
        Assertion("test_running_slots_start_at_boot"),
        Assertion("test_its_directories_lie_on_the_data_disk", 2, _has_data_disk),
        Assertion("test_directories_belong_to_root"),
        Assertion("test_what_is_unverified_and_what_is_configured_is_closed"),
        Assertion("test_the_runtime_can_write_nothing_that_is_shared"),
        Assertion("test_the_users_cannot_log_in", cases=4),
        Assertion("test_each_slot_has_a_user_of_its_own"),
    ),
)
