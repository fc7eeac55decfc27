"""The page in a real browser: every control is used, and what appears is compared with the library."""

import json
import re
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbp import RNN, Chain, Dense, InputError, ReLU, SoftmaxCrossEntropy, SquaredError
from jaxbp.app.data import Dataset
from jaxbp.explain import Explainer
from jaxbp.explain.notes import notes_explainer
from jaxbp.explain.page import descent, page
from jaxbp.explain.page_data import Frame

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-default-apps",
    "--window-size=1300,1100",
]


@pytest.fixture(scope="module")
def explainer():
    return notes_explainer()


@pytest.fixture(scope="module")
def sequence():
    """A recurrence: many columns, the same weight at every step."""
    net = Chain(RNN(2), Dense(2))
    random = np.random.default_rng(3)
    params = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 3, 2)))
    params = jax.tree.map(lambda leaf: random.normal(size=leaf.shape) / 2, params)
    return Explainer(net, params, random.normal(size=(3, 2)), random.normal(size=(3, 2)), SquaredError())


@pytest.fixture(scope="module")
def frames(explainer):
    return descent(explainer, 6)


@pytest.fixture(scope="module")
def written(explainer, frames, tmp_path_factory):
    file = tmp_path_factory.mktemp("page") / "page.html"
    file.write_text(page(explainer, "w212", frames=frames), "utf-8")
    return file


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if not CHROMIUM or not DRIVER:
        pytest.skip("no chromium and chromedriver on this machine (apt-get install chromium-driver)")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    profile = tmp_path_factory.mktemp("profile")
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser, written):
    """The page freshly loaded; afterwards: no errors on the console, and nothing asked of a network."""
    browser.get_log("browser"), browser.get_log("performance")
    browser.get(written.as_uri())
    yield browser
    errors = browser.get_log("browser")
    assert errors == []
    asked = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [m["params"]["request"]["url"] for m in asked if m["method"] == "Network.requestWillBeSent"]
    assert [u for u in urls if not u.startswith(("file:", "data:"))] == []
    assert urls


def one(browser, selector):
    return browser.find_element("css selector", selector)


def all_of(browser, selector):
    return browser.find_elements("css selector", selector)


def click(browser, selector):
    one(browser, selector).click()


def number(browser, selector):
    return float(one(browser, selector).get_attribute("data-value"))


def set_slider(browser, value):
    browser.execute_script(
        "const s = document.getElementById('frame'); s.value = arguments[0];"
        "s.dispatchEvent(new Event('input', {bubbles: true}))",
        value,
    )


def select(browser, name):
    from selenium.webdriver.support.ui import Select

    Select(one(browser, "#weight")).select_by_visible_text(name)


def expected_rows(explanation):
    return {" ".join(p.nodes): p.contribution for p in explanation.paths}


def rows(browser):
    return {
        row.get_attribute("data-nodes"): float(row.get_attribute("data-contribution"))
        for row in all_of(browser, "#paths button")
    }


def check_explanation(browser, e):
    assert rows(browser) == pytest.approx(expected_rows(e), rel=1e-12, abs=1e-18)
    assert number(browser, "#gradient") == pytest.approx(e.gradient, rel=1e-12, abs=1e-15)
    assert number(browser, "#total") == pytest.approx(e.gradient, rel=1e-9, abs=1e-15)
    assert one(browser, "#count").get_attribute("data-value") == str(e.count)


def test_it_opens_with_the_numbers_of_the_library(opened, explainer):
    check_explanation(opened, explainer.weight("w212"))
    assert "−0.13037670618" in one(opened, "#gradient").text
    assert number(opened, "#loss") == pytest.approx(explainer.graph.value, rel=1e-15)
    assert float(one(opened, "#step-line").get_attribute("data-value")) == pytest.approx(0.93037670618)
    for block in explainer.graph.blocks:
        for i, (value, error) in enumerate(zip(block.value, explainer.error(block), strict=True)):
            neuron = one(opened, f'[data-name="{block.neuron(i)}"]')
            assert float(neuron.get_attribute("data-value")) == pytest.approx(value, rel=1e-15)
            assert float(neuron.get_attribute("data-error")) == pytest.approx(error, rel=1e-12, abs=1e-18)


def test_every_weight_bias_and_input_in_the_list(opened, explainer):
    """Each is chosen in turn; one script chooses and reads, since the browser is slow to talk to."""
    shown = opened.execute_script("""
      const list = document.getElementById('weight');
      const value = (id) => document.getElementById(id).dataset.value;
      return [...list.options].map((option) => {
        list.value = option.value;
        list.dispatchEvent(new Event('change', {bubbles: true}));
        const buttons = [...document.querySelectorAll('#paths button')];
        const rows = buttons.map((b) => [b.dataset.nodes, +b.dataset.contribution]);
        const [gradient, total] = ['gradient', 'total'].map((id) => +value(id));
        return [option.text, {rows, gradient, total, count: value('count')}];
      });""")
    assert sorted(name for name, _ in shown) == sorted([*explainer.names(), "x1", "x2", "x3", "x4"])
    for name, seen in shown:
        e = explainer.weight(name, k=12, formulas=False)
        assert dict(seen["rows"]) == pytest.approx(expected_rows(e), rel=1e-12, abs=1e-18)
        assert seen["gradient"] == pytest.approx(e.gradient, rel=1e-12, abs=1e-15)
        assert seen["total"] == pytest.approx(e.gradient, rel=1e-9, abs=1e-15)
        assert seen["count"] == str(e.count)


def test_clicking_an_edge_an_input_and_a_neuron(opened, explainer):
    edges = all_of(opened, ".edge[data-weight]")
    assert len(edges) == 24
    for name, selector in {
        "w131": '.edge[data-weight="w131"]',
        "w224": '.edge[data-weight="w224"]',
        "x3": '.neuron[data-name="x3"]',
        "b12": '.neuron[data-name="a12"]',
    }.items():
        opened.execute_script(
            "arguments[0].dispatchEvent(new MouseEvent('click', {bubbles: true}))", one(opened, selector)
        )
        check_explanation(opened, explainer.weight(name, k=12, formulas=False))
        assert f"∂L/∂{name}" in one(opened, "#why-h").text
        beside = [dt.text for dt in all_of(opened, "#now dt")]
        assert len(beside) == 24 + (name[0] == "b")
        assert name in beside or name[0] == "x"


def test_a_pointer_really_hits_an_edge(opened, explainer):
    """A click at the middle of an edge's line, as a person makes it."""
    from selenium.webdriver.common.action_chains import ActionChains

    edge = one(opened, '.edge[data-weight="w211"]')
    ActionChains(opened).move_to_element(edge.find_element("css selector", ".line")).perform()
    assert "w211 = 0.5" in one(opened, "#tip").text
    ActionChains(opened).click().perform()
    check_explanation(opened, explainer.weight("w211"))


def test_edges_by_keyboard(opened, explainer):
    from selenium.webdriver.common.keys import Keys

    edge = one(opened, '.edge[data-weight="w123"]')
    assert edge.get_attribute("tabindex") == "0"
    assert "w123 = 0.5" in edge.get_attribute("aria-label")
    opened.execute_script("arguments[0].focus()", edge)
    opened.switch_to.active_element.send_keys(Keys.ENTER)
    check_explanation(opened, explainer.weight("w123", formulas=False))


def test_colour_and_width_follow_the_weights(opened, explainer):
    negative = {n for n in explainer.names() if n[0] == "w" and explainer.weight(n, 1).value < 0}
    shown = {e.get_attribute("data-weight") for e in all_of(opened, ".edge.neg")}
    assert shown == negative
    click(opened, "#next")  # where nothing is lit, width is size
    width = {
        e.get_attribute("data-weight"): float(
            e.find_element("css selector", ".line").value_of_css_property("stroke-width").rstrip("px")
        )
        for e in all_of(opened, ".edge[data-weight]")
    }
    assert width["w143"] > width["w113"] > width["w112"] > width["w111"] > width["w132"]


def test_a_path_lights_up_with_its_factors(opened, explainer):
    select(opened, "w131")
    path = explainer.weight("w131").paths[2]
    all_of(opened, "#paths button")[2].click()
    assert all_of(opened, "#paths button")[2].get_attribute("aria-pressed") == "true"
    lit = {
        (e.get_attribute("data-from"), e.get_attribute("data-to")) for e in all_of(opened, ".edge.now")
    }
    assert lit == set(zip(path.nodes, path.nodes[1:], strict=False))
    factors = [float(f) for f in all_of(opened, "#paths button")[2].get_attribute("data-factors").split()]
    assert factors == pytest.approx(path.factors)
    written = [t.text.removeprefix("× ").replace("−", "-") for t in all_of(opened, ".factor:not(.first)")]
    assert [float(t) for t in written] == pytest.approx(path.factors[1:], rel=5e-3)
    assert one(opened, ".factor.first").text == "2"
    assert "Path 3" in one(opened, "#status").text or "Path 3" in one(opened, "#status").get_attribute(
        "textContent"
    )
    all_of(opened, "#paths button")[2].click()
    assert not all_of(opened, ".edge.now")


def test_formulas_are_mathml(opened):
    select(opened, "w131")
    spaces = opened.execute_script(
        "return [...document.querySelectorAll('#formula math, #paths math')].map(m => m.namespaceURI)"
    )
    assert len(spaces) > 8
    assert set(spaces) == {"http://www.w3.org/1998/Math/MathML"}
    top = one(opened, "#formula").get_attribute("textContent")
    assert top.startswith("∂L∂w131")
    assert top.count("∂a13∂w131") == 4
    detail = one(opened, "#paths li:nth-child(3) .detail").get_attribute("textContent")
    plain = "".join(c for c in detail if c not in "\u200b ")
    assert plain.startswith("x1⋅h13⋅(1−h13)⋅w213⋅ŷ1⋅(1−ŷ1)⋅(−2⋅(y1−ŷ1))")
    assert plain.endswith("2⋅0.0971947⋅0.2⋅0.176918⋅(−0.459328)=−0.00315936")


def hurry(browser):
    """Let the page's clock run six times as fast."""
    browser.execute_script("const run = setInterval; window.setInterval = (f, ms) => run(f, ms / 6)")


def test_playing_the_paths(opened):
    hurry(opened)
    select(opened, "w131")
    opened.execute_script(  # which paths are lit, whenever the list changes: none is missed
        "window.lit = []; const list = document.getElementById('paths');"
        "new MutationObserver(() => [...list.querySelectorAll('button')].forEach((b, k) => {"
        "if (b.ariaPressed === 'true') window.lit.push(k); })).observe(list, {childList: true})"
    )
    click(opened, "#play-paths")
    end = time.monotonic() + 12
    while time.monotonic() < end and one(opened, "#play-paths").text == "Stop":
        time.sleep(0.02)
    assert opened.execute_script("return window.lit") == [0, 1, 2, 3]
    assert one(opened, "#play-paths").text == "Play the paths"
    click(opened, "#play-paths")
    click(opened, "#play-paths")
    assert one(opened, "#play-paths").text == "Play the paths"


def lines(browser):
    return [li.text for li in all_of(browser, "#stage-lines li")]


def test_the_walk_forward_and_back(opened, explainer):
    assert not one(opened, "#back").is_enabled()
    titles, text = [], []
    while one(opened, "#next").is_enabled():
        click(opened, "#next")
        titles.append(one(opened, "#stage-name").text)
        text.append(lines(opened))
    blocks = [b.name for b in explainer.graph.blocks]
    forward = ["the input", *(f"forward, {b}" for b in blocks[1:])]
    backward = ["backward, ∂L/∂ŷ", "backward, δ2", "backward, ∂L/∂h1", "backward, δ1", "backward, ∂L/∂x"]
    assert titles == [*forward, *backward, "the update"]
    going = [block.value for block in explainer.graph.blocks]
    coming = [explainer.error(block) for block in explainer.graph.blocks[-2::-1]]
    for stage, numbers in zip(text, [*going, *coming], strict=False):
        for line, expected in zip(stage, numbers, strict=True):
            shown = float(line.rsplit(" = ", 1)[1].replace("−", "-"))
            assert shown == pytest.approx(expected, rel=1e-5, abs=1e-15)
    assert text[1][0].startswith("a11 = w111 x1 + w112 x2 + w113 x3 + w114 x4 + b11 = 0.1 · 2 + 0.3 · 5")
    assert text[7][0].startswith("δ21 = ∂L/∂a21 = ∂L/∂ŷ1 · ŷ1(1 − ŷ1) + ∂L/∂ŷ2 · (−ŷ1 ŷ2)")
    updates = dict(re.match(r"(\w+) := .* = (\S+)$", line).groups() for line in text[-1])
    for name in explainer.names():
        expected = explainer.weight(name, 1, formulas=False).stepped
        assert float(updates[name].replace("−", "-")) == pytest.approx(expected, rel=1e-5)
    click(opened, "#back")
    assert one(opened, "#stage-name").text == "backward, ∂L/∂x"
    click(opened, "#first")
    assert one(opened, "#stage-name").text == "everything at once"


def test_errors_arrive_one_layer_at_a_time(opened):
    for _ in range(8):  # x, a1, h1, a2, ŷ, L, ∂ŷ, δ2
        click(opened, "#next")

    def error_text(name):
        return one(opened, f'.neuron[data-name="{name}"] .err').text

    assert error_text("a21") == "−0.163"
    assert error_text("ŷ1") == "−0.459"
    assert error_text("h11") == error_text("a11") == ""
    arriving = {n.get_attribute("data-name") for n in all_of(opened, ".neuron.arriving")}
    assert arriving == {"a21", "a22"}


def test_playing_and_pausing_the_walk(opened):
    hurry(opened)
    click(opened, "#play")
    assert one(opened, "#play").text == "Pause"
    end = time.monotonic() + 12
    while time.monotonic() < end and not one(opened, "#stage-name").text.startswith("forward"):
        time.sleep(0.02)
    click(opened, "#play")
    at = one(opened, "#stage-name").text
    assert at.startswith("forward, ")
    time.sleep(0.7)
    assert one(opened, "#stage-name").text == at
    assert one(opened, "#play").get_attribute("aria-pressed") == "false"


def test_the_slider_over_training_steps(opened, explainer, frames):
    select(opened, "w131")
    slider = one(opened, "#frame")
    assert slider.get_attribute("max") == str(len(frames) - 1)
    heights = []
    for step in (0, 3, len(frames) - 1):
        set_slider(opened, step)
        now = explainer.at(frames[step].params)
        check_explanation(opened, now.weight("w131", formulas=False))
        assert number(opened, "#loss") == pytest.approx(now.graph.value, rel=1e-12)
        value = float(one(opened, '[data-name="h13"]').get_attribute("data-value"))
        assert value == pytest.approx(now.graph.blocks[2].value[2], rel=1e-12)
        edge = float(one(opened, '.edge[data-weight="w131"]').get_attribute("data-value"))
        assert edge == pytest.approx(now.weight("w131", 1).value, rel=1e-12)
        shown = {
            row.find_element("css selector", "dt").text: row.find_element("css selector", "dd")
            for row in all_of(opened, "#now div")
        }
        assert len(shown) == 24
        slopes = {
            row.find_element("css selector", "dt").text: row.find_element("css selector", ".slope")
            for row in all_of(opened, "#now div")
        }
        assert float(slopes["w212"].get_attribute("data-value")) == pytest.approx(
            now.weight("w212", 1, formulas=False).gradient
        )
        assert float(shown["w212"].get_attribute("data-value")) == pytest.approx(
            now.weight("w212", 1).value
        )
        heights.append(float(one(opened, "#dot").get_attribute("cy")))
    assert heights[0] < heights[1] < heights[2]  # the loss falls: the dot goes down


def test_the_slider_by_keyboard(opened):
    from selenium.webdriver.common.keys import Keys

    one(opened, "#frame").send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert one(opened, "#frame-label").text.startswith("step 2, L = ")


def test_colours_light_and_dark(opened):
    def paper():
        return opened.execute_script("return getComputedStyle(document.body).backgroundColor")

    assert one(opened, "#theme").text == "Colours: system"
    click(opened, "#theme")
    light = paper()
    click(opened, "#theme")
    assert one(opened, "#theme").text == "Colours: dark"
    assert paper() != light
    click(opened, "#theme")
    assert one(opened, "#theme").text == "Colours: system"


NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SIZES = [(390, 844), (1280, 800), (1920, 1080)]


def sized(browser, width, height):
    """A window whose inside has this size."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


@pytest.fixture
def own_size(browser):
    yield
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("which", ["notes", "digits", "wide"])
def test_network_formula_and_controls_are_in_view_together(browser, request, own_size, which, size):
    page_of = {"notes": "written", "digits": "digits", "wide": "large"}[which]
    file = request.getfixturevalue(page_of)
    sized(browser, *size)
    browser.get((file[0] if isinstance(file, tuple) else file).as_uri())
    place = browser.execute_script(
        "const all = ['scroll', 'next', 'play', 'loss', 'formula', 'weight', 'name', 'play-paths'];"
        "const box = (id) => document.getElementById(id).getBoundingClientRect().toJSON();"
        "return Object.fromEntries(all.map((id) => [id, box(id)]))"
    )
    for name, box in place.items():
        assert 0 <= box["left"] < box["right"] <= size[0], name
        seen = {"scroll": 150, "formula": 50}.get(name, box["height"])
        assert 0 <= box["top"] <= size[1] - seen, name
    assert min(place[name]["height"] for name in ("next", "play", "weight")) >= 40
    page = browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    assert page[0] <= page[1] == size[0]
    frame = browser.execute_script(
        "const s = document.getElementById('scroll');"
        "return [s.scrollWidth > s.clientWidth + 1 || s.scrollHeight > s.clientHeight + 1,"
        "!document.getElementById('scrolls').hidden]"
    )
    assert frame[0] == frame[1]  # what goes on beyond its frame says so
    if which == "notes":
        assert not frame[0]  # the network of the notes fits, and its loss with it


@pytest.mark.parametrize("which", ["written", "digits", "large"])
def test_labels_do_not_collide(browser, request, which):
    """No two texts of a drawing overlap, in its own units."""
    file = request.getfixturevalue(which)
    browser.get((file[0] if isinstance(file, tuple) else file).as_uri())
    texts, hits = browser.execute_script("""
    const texts = [...document.querySelectorAll('#scroll svg text')].filter((e) => e.textContent);
    const boxes = texts.map((e) => {
      const { x, y, width, height } = e.getBBox(), { a, d, e: right, f: down } = e.getCTM();
      return { text: e.textContent, x: x + right / a, y: y + down / d, width, height };
    });
    const beside = (p, q) => p.x + p.width <= q.x || q.x + q.width <= p.x;
    const apart = (p, q) => beside(p, q) || p.y + p.height <= q.y || q.y + q.height <= p.y;
    const pairs = boxes.flatMap((p, i) => boxes.slice(i + 1).map((q) => [p, q]));
    const hits = pairs.filter(([p, q]) => !apart(p, q)).map(([p, q]) => [p.text, q.text]);
    return [boxes.length, hits];
    """)
    assert texts > 50
    assert hits == []


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A network for images of 8 × 8, trained on nothing: `(file, explainer)`."""
    random = np.random.default_rng(4)
    net = Chain(Dense(12), ReLU(), Dense(10))
    params = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 64)))
    params = jax.tree.map(lambda leaf: random.normal(size=leaf.shape) / 4, params)
    x, y = random.uniform(size=(3, 64)), np.array([4, 7, 1])
    data = Dataset("own", x, y, x, y, 10, classes=NAMES, image=(8, 8, 1))
    explainer = Explainer(net, params, x[1], y[1], SoftmaxCrossEntropy())
    file = tmp_path_factory.mktemp("digits") / "page.html"
    file.write_text(page(explainer, "w1_3_12", frames=descent(explainer, 1, 0.1), data=data), "utf-8")
    return file, explainer


def test_the_example_is_shown(browser, digits):
    file, explainer = digits
    browser.get(file.as_uri())
    logits = explainer.graph.predicted[0]
    share = float(jax.nn.softmax(logits).max())
    words = one(browser, "#answer").text
    assert words.startswith(f"class seven, predicted {NAMES[int(jnp.argmax(logits))]} (")
    assert float(words.split("(")[1].split()[0]) == pytest.approx(100 * share, rel=5e-3)
    assert one(browser, "#where").text == "x12: row 2, column 4"
    mark = one(browser, "#picture .mark.chosen")
    assert mark.get_attribute("data-input") == "x12"
    assert [float(mark.get_attribute(k)) for k in "xy"] == [30.5, 10.5]  # pixels are 10 wide
    ink = one(browser, '#picture .ink[x="30"][y="10"]')
    pixels = np.asarray(explainer.x)[0]
    value = (pixels[11] - pixels.min()) / (pixels.max() - pixels.min())
    assert float(ink.get_attribute("opacity")) == pytest.approx(value, abs=1e-3)
    other = next(m for m in all_of(browser, "#picture .mark") if m.get_attribute("data-input") != "x12")
    other.click()
    assert one(browser, "#gradient-name").text == f"∂L/∂{other.get_attribute('data-input')}"


def test_columns_have_their_names(browser, tmp_path):
    random, net = np.random.default_rng(2), Chain(Dense(2))
    x = random.normal(size=(1, 3))
    data = Dataset("own", x, x[:, :2], x, x[:, :2], 2, kind="values", columns=("age", "height", "weight"))
    params = ({"w": random.normal(size=(3, 2)), "b": random.normal(size=2)},)
    explainer = Explainer(net, params, x[0], x[0, :2], SquaredError())
    (tmp_path / "page.html").write_text(page(explainer, "w123", frames=descent(explainer, 1), data=data))
    browser.get((tmp_path / "page.html").as_uri())
    assert one(browser, "#where").text == "x3: weight"
    assert not one(browser, "#picture").text
    neuron = one(browser, '.neuron[data-name="x2"]')
    assert neuron.get_attribute("aria-label").startswith("height, x2 = ")


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("w1_3_12", None),
        ("[0]['w'][11, 2]", None),
        ("0.w[11,2]", None),
        ("b1_13", "there is no b1_13: in that layer b goes up to b1_12"),
        ("w1_3_65", "there is no w1_3_65: in that layer w goes up to w1_12_64"),
        ("[0]['w'][64, 2]", "[0]['w'] has shape [64, 12], so [0]['w'][64, 2] names no entry of it"),
        ("v111", "there is no v111; the last entries are b1_12, w1_12_64, b2_10, w2_10_12"),
    ],
)
def test_any_weight_by_its_name(browser, digits, asked, words):
    from selenium.webdriver.common.keys import Keys

    browser.get(digits[0].as_uri())
    select(browser, all_of(browser, "#weight option")[3].get_attribute("textContent"))
    one(browser, "#name").send_keys(asked, Keys.ENTER)
    if words is None:
        assert one(browser, "#gradient-name").text == "∂L/∂w1_3_12"
        assert not one(browser, "#asked").is_displayed()
    else:
        assert one(browser, "#asked").text == words


def test_a_weight_that_is_not_drawn_still_has_its_gradient(browser, digits):
    from selenium.webdriver.common.keys import Keys

    file, explainer = digits
    browser.get(file.as_uri())
    drawn = {o.get_attribute("textContent") for o in all_of(browser, "#weight option")}
    name = next(n for n in explainer.names() if n.startswith("w1_") and n not in drawn)
    one(browser, "#name").send_keys(name, Keys.ENTER)
    words = one(browser, "#asked").text
    shown = float(words.split(" = ")[1].split(" at ")[0].replace("−", "-"))
    assert shown == pytest.approx(explainer.weight(name, 1).gradient, rel=1e-5)
    assert words.endswith(f"are not drawn; --weight {name} draws them")


def test_everything_that_acts_has_a_name(opened):
    nameless = opened.execute_script(
        "return [...document.querySelectorAll('button, select, input, [tabindex]')].filter(e =>"
        "!(e.textContent.trim() || e.getAttribute('aria-label') || e.labels?.length))"
        ".map(e => e.outerHTML)"
    )
    assert nameless == []
    assert opened.execute_script("return document.documentElement.lang") == "en"
    assert one(opened, "#status").get_attribute("aria-live") == "polite"


def test_contrast(opened):
    """Text on its ground at least 4.5 to 1, in light and in dark."""
    script = """
    const css = getComputedStyle(document.documentElement);
    const lum = (name) => {
      const hex = css.getPropertyValue(name).trim().slice(1);
      const [r, g, b] = [0, 2, 4].map((k) => parseInt(hex.slice(k, k + 2), 16) / 255)
        .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
      return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ratio = (a, b) => (Math.max(lum(a), lum(b)) + 0.05) / (Math.min(lum(a), lum(b)) + 0.05);
    return [['--ink', '--panel'], ['--soft', '--panel'], ['--soft', '--paper'], ['--lit', '--panel'],
      ['--error', '--panel'], ['--ink', '--value']].map(([a, b]) => ratio(a, b));
    """
    for _ in range(3):
        assert min(opened.execute_script(script)) >= 4.5
        click(opened, "#theme")


def test_printing_gives_pages(opened):
    import base64

    made = base64.b64decode(opened.print_page())
    assert made.startswith(b"%PDF")
    assert len(made) > 20_000


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A network of which only a part is drawn: `(file, explainer)`."""
    net = Chain(Dense(30), ReLU(), Dense(15), ReLU(), Dense(4))
    x, random = np.random.default_rng(0).normal(size=64), np.random.default_rng(1)
    params = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 64)))
    params = jax.tree.map(lambda leaf: random.normal(size=leaf.shape) / 4, params)
    explainer = Explainer(net, params, x, np.int32(3), SoftmaxCrossEntropy())
    file = tmp_path_factory.mktemp("large") / "large.html"
    file.write_text(page(explainer, "w1_5_7", frames=descent(explainer, 2, 0.1)), "utf-8")
    return file, explainer


def test_a_large_network_is_summarised(browser, large):
    file, explainer = large
    browser.get_log("browser")
    browser.get(file.as_uri())
    e = explainer.weight("w1_5_7", k=3)
    assert one(browser, "#count").get_attribute("data-value") == str(e.count) == "60"
    shown = rows(browser)
    assert 3 <= len(shown) <= 12
    for nodes, contribution in expected_rows(e).items():
        assert shown[nodes] == pytest.approx(contribution, rel=1e-9)
    rest = number(browser, "#rest")
    assert sum(shown.values()) + rest == pytest.approx(e.gradient, rel=1e-9, abs=1e-12)
    inputs = len(all_of(browser, '.neuron[data-name^="x"]'))
    assert inputs in (8, 9)
    assert f"+ {64 - inputs} more" in one(browser, "#scroll svg").text
    assert one(browser, "main").get_attribute("class") == "wide"
    assert browser.get_log("browser") == []


def test_a_recurrence_through_time(browser, sequence, tmp_path):
    """One weight at three steps: its paths begin at several neurons, also after some training."""
    file = tmp_path / "sequence.html"
    frames = descent(sequence, 2, 0.1)
    file.write_text(page(sequence, "w_x_121", frames=frames), "utf-8")
    browser.get_log("browser")
    browser.get(file.as_uri())
    for step in (0, 2):
        set_slider(browser, step)
        e = sequence.at(frames[step].params).weight("w_x_121", k=12, formulas=False)
        assert len({p.nodes[0] for p in e.paths}) > 1
        assert one(browser, "#count").get_attribute("data-value") == str(e.count)
        assert rows(browser) == pytest.approx(expected_rows(e), rel=1e-9, abs=1e-15)
        assert number(browser, "#gradient") == pytest.approx(e.gradient, rel=1e-9)
    assert browser.get_log("browser") == []


# --- without a browser ------------------------------------------------------------------------------


def test_the_file_asks_for_nothing(written):
    text = written.read_text("utf-8")
    assert not re.search(r"(?:src|href)\s*=\s*[\"'](?!data:|#)", text)
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|import\s*\(", text)
    links = set(re.findall(r"https?://[^\s\"'<)]+", text))
    assert links == {"http://www.w3.org/2000/svg"}  # a namespace, never loaded


def test_what_a_user_writes_cannot_break_out_of_the_page(explainer, frames):
    evil = "</script><script>alert(1)</script>"
    text = page(explainer, "w212", frames=frames[:1], title=evil, about=evil)
    assert "<script>alert(1)" not in text


def test_a_network_that_is_not_finite_has_no_page():
    net = Chain(Dense(2))
    params = ({"w": np.full((3, 2), np.inf), "b": np.zeros(2)},)
    explainer = Explainer(net, params, np.ones(3), np.ones(2), SquaredError())
    with pytest.raises(InputError, match="not finite"):
        page(explainer, "w111", frames=[Frame("0", explainer.params)])
