"""The tests render the working tree as it is now, and one render serves them all."""

from pathlib import Path

from scaffold import HARDENED, PLAIN, VERSION, Shared, Template, git


def test_uncommitted_change_reaches_the_render(tmp_path: Path, template: Template) -> None:
    checkout = Template.of_working_tree(tmp_path / "checkout", template.path).path
    before = Template.of_working_tree(tmp_path / "before", checkout)
    (checkout / "template" / "untracked.txt").write_text("not even added\n")
    (checkout / ".gitignore").write_text("ignored.txt\n")
    (checkout / "template" / "ignored.txt").write_text("a cache\n")
    script = next((checkout / "template" / "scripts").iterdir())
    script.write_text("changed and not committed\n")
    after = Template.of_working_tree(tmp_path / "after", checkout)

    first, second = before.copy(tmp_path / "first", PLAIN), after.copy(tmp_path / "second", PLAIN)
    assert (second / "untracked.txt").read_text() == "not even added\n"
    assert not (second / "ignored.txt").exists()
    rendered = Path("scripts") / script.name.removesuffix(".jinja")
    assert (second / rendered).read_text() == "changed and not committed\n"
    assert (first / rendered).read_text() != "changed and not committed\n", "control"
    assert not (first / "untracked.txt").exists()
    assert git(checkout, "status", "--porcelain") != "", "the checkout itself is left as it was"


def test_template_copy_is_tagged_and_clean(template: Template) -> None:
    assert git(template.path, "tag").split() == [f"v{VERSION}"]
    assert git(template.path, "status", "--porcelain", "--ignored") == ""


def test_a_render_is_made_once(shared: Shared, template: Template) -> None:
    first = shared.render(template, PLAIN)
    made = first.stat().st_mtime_ns
    assert shared.render(template, dict(PLAIN)) == first
    assert first.stat().st_mtime_ns == made
    assert shared.render(template, HARDENED) != first
