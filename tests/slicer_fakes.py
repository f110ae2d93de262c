"""Stand-ins for the modules slicer, qt and ctk, as far as the module in integrations/slicer uses them.

They have the names that Slicer's documentation gives, and no others: another attribute or signal is an AttributeError. A process
is a real one where `FakeProcess.real` is set; else tests say what it writes and how it ends.
"""

import logging
import os
import subprocess
import sys
import types
import unittest
from contextlib import contextmanager
from pathlib import Path


class Strict:
    """Has the attributes that are declared, and a signal for each of SIGNALS."""

    SIGNALS: tuple[str, ...] = ()
    ATTRIBUTES: dict[str, object] = {}

    def __init__(self, *_: object):
        for name, value in self.ATTRIBUTES.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "slots", {})

    def __setattr__(self, name: str, value: object) -> None:
        if name not in self.ATTRIBUTES:
            raise AttributeError(f"{type(self).__name__} has no property {name}")
        object.__setattr__(self, name, value)

    def connect(self, signal: str, slot) -> None:
        if signal not in self.SIGNALS:
            raise AttributeError(f"{type(self).__name__} has no signal {signal}")
        self.slots.setdefault(signal, []).append(slot)

    def emit(self, signal: str, *arguments: object) -> None:
        assert signal in self.SIGNALS
        for slot in self.slots.get(signal, []):
            slot(*arguments)


# --- widgets ---------------------------------------------------------------------------------------------------------

COMMON = {"toolTip": "", "enabled": True, "visible": True}


class Label(Strict):
    ATTRIBUTES = {**COMMON, "text": "", "wordWrap": False}


class LineEdit(Strict):
    ATTRIBUTES = {**COMMON, "text": ""}


class PathLineEdit(Strict):
    ATTRIBUTES = {**COMMON, "currentPath": ""}


class Button(Strict):
    SIGNALS = ("clicked(bool)",)
    ATTRIBUTES = {**COMMON, "text": ""}

    def click(self) -> None:
        assert self.enabled
        self.emit("clicked(bool)", False)


class CollapsibleButton(Strict):
    ATTRIBUTES = {**COMMON, "text": ""}


class ProgressBar(Strict):
    ATTRIBUTES = {**COMMON, "limits": None}

    def setRange(self, low: int, high: int) -> None:
        self.limits = (low, high)


class PlainTextEdit(Strict):
    ATTRIBUTES = {**COMMON, "plainText": "", "readOnly": False}

    def moveCursor(self, place: str) -> None:
        assert place == "end"

    def insertPlainText(self, text: str) -> None:
        self.plainText += text

    def clear(self) -> None:
        self.plainText = ""


class ComboBox(Strict):
    SIGNALS = ("activated(int)",)
    ATTRIBUTES = {**COMMON, "items": None, "currentIndex": -1}

    def addItem(self, text: str, data: object = None) -> None:
        self.items = [*(self.items or []), (text, data)]
        self.currentIndex = max(self.currentIndex, 0)

    def clear(self) -> None:
        self.items, self.currentIndex = None, -1

    @property
    def currentData(self) -> object:
        return self.items[self.currentIndex][1]


class Layout(Strict):
    ATTRIBUTES = {"rows": None}

    def addRow(self, *row: object) -> None:
        self.rows = [*(self.rows or []), row]

    def addWidget(self, widget: object) -> None:
        self.addRow(widget)

    def addStretch(self, stretch: int) -> None:
        pass


class NodeComboBox(Strict):
    SIGNALS = ("currentNodeChanged(vtkMRMLNode*)",)
    ATTRIBUTES = {
        **COMMON,
        "nodeTypes": None,
        "addEnabled": True,
        "removeEnabled": True,
        "noneEnabled": False,
        "showChildNodeTypes": True,
        "scene": None,
        "node": None,
    }

    def setMRMLScene(self, scene: object) -> None:
        self.scene = scene

    def currentNode(self) -> object:
        return self.node

    def choose(self, node: object) -> None:
        self.node = node
        self.emit("currentNodeChanged(vtkMRMLNode*)", node)


class TableView(Strict):
    ATTRIBUTES = {**COMMON, "scene": None, "node": None}

    def setMRMLScene(self, scene: object) -> None:
        self.scene = scene

    def setMRMLTableNode(self, node: object) -> None:
        self.node = node


# --- processes -------------------------------------------------------------------------------------------------------


class ByteArray:
    def __init__(self, content: bytes):
        self.content = content

    def data(self) -> bytes:
        return self.content


class ProcessEnvironment(Strict):
    ATTRIBUTES = {"values": None}

    def insert(self, name: str, value: str) -> None:
        assert isinstance(name, str) and isinstance(value, str)
        self.values = {**(self.values or {}), name: value}


class FakeProcess(Strict):
    """QProcess. Tests end it by `end`, or let it be a real process that has ended when `start` returns."""

    SIGNALS = (
        "readyReadStandardOutput()",
        "finished(int,QProcess::ExitStatus)",
        "errorOccurred(QProcess::ProcessError)",
    )
    ATTRIBUTES = {"environment": None, "command": None, "waiting": b"", "asked": (), "failure": ""}
    MergedChannels, NormalExit, CrashExit, FailedToStart, Crashed = (
        "merged",
        "normal",
        "crash",
        "not started",
        "crashed",
    )
    started: "list[FakeProcess]" = []
    real = False

    def setProcessEnvironment(self, environment: ProcessEnvironment) -> None:
        self.environment = environment.values

    def setProcessChannelMode(self, mode: str) -> None:
        assert mode == self.MergedChannels

    def start(self, program: str, words: list[str]) -> None:
        assert all(isinstance(word, str) for word in (program, *words))
        self.command = [program, *words]
        self.started.append(self)
        if self.real:
            out, err = subprocess.PIPE, subprocess.STDOUT
            run = subprocess.run(self.command, env=self.environment, stdout=out, stderr=err)
            self.write(run.stdout)
            self.end(run.returncode)

    def write(self, content: bytes) -> None:
        self.waiting += content
        self.emit("readyReadStandardOutput()")

    def end(self, code: int, status: str = NormalExit) -> None:
        self.emit("finished(int,QProcess::ExitStatus)", code, status)

    def fail_to_start(self, why: str) -> None:
        self.failure = why
        self.emit("errorOccurred(QProcess::ProcessError)", self.FailedToStart)

    def readAllStandardOutput(self) -> ByteArray:
        content, self.waiting = self.waiting, b""
        return ByteArray(content)

    def errorString(self) -> str:
        return self.failure

    def terminate(self) -> None:
        self.asked += ("terminate",)

    def kill(self) -> None:
        self.asked += ("kill",)
        self.emit("errorOccurred(QProcess::ProcessError)", self.Crashed)
        self.end(9, self.CrashExit)

    def waitForFinished(self, milliseconds: int) -> bool:
        return True


class Timer:
    """QTimer, whose time has come when tests say so."""

    waiting: list = []

    @classmethod
    def singleShot(cls, milliseconds: int, slot) -> None:
        cls.waiting.append(slot)

    @classmethod
    def ring(cls) -> None:
        while cls.waiting:
            cls.waiting.pop(0)()


class Settings:
    """QSettings."""

    values: dict[str, object] = {}

    def setValue(self, name: str, value: object) -> None:
        self.values[name] = value


# --- the scene -------------------------------------------------------------------------------------------------------


class DisplayNode(Strict):
    ATTRIBUTES = {"told": ()}

    def __getattr__(self, name: str):
        known = "SetAndObserveColorNodeID SetAutoWindowLevel SetWindowLevelMinMax SetAutoThreshold SetThreshold SetApplyThreshold"
        if name not in known.split():
            raise AttributeError(name)
        return lambda *values: setattr(self, "told", (*self.told, (name, *values)))


class Node:
    """A node of a scene: with the content of its file, and what it was given."""

    def __init__(self, kind: str, name: str = "", file: Path | None = None):
        self.kind, self.name, self.content = kind, name, None if file is None else file.read_bytes()
        self.storage = None if file is None else Node("storage", str(file))
        self.transform: str | None = None
        self.display = DisplayNode()
        self.shift = (0.0, 0.0, 0.0)

    def GetName(self) -> str:
        return self.name

    def SetName(self, name: str) -> None:
        self.name = name

    def GetStorageNode(self) -> "Node | None":
        return self.storage

    def GetDisplayNode(self) -> DisplayNode:
        return self.display

    def GetTransformNodeID(self) -> str | None:
        return self.transform

    def SetAndObserveTransformNodeID(self, transform: str | None) -> None:
        self.transform = transform

    def TransformPointToWorld(self, place: list[float], out: list[float]) -> None:
        out[:] = [a + b for a, b in zip(place, self.shift)]


class Segmentation:
    def __init__(self, count: int):
        self.segments = [Node("segment", f"Segment_{number}") for number in range(1, count + 1)]

    def GetNumberOfSegments(self) -> int:
        return len(self.segments)

    def GetNthSegment(self, index: int) -> Node:
        return self.segments[index]


class SegmentationNode(Node):
    """segments: how many numbers its file has, which tests set."""

    segments = 0

    def __init__(self, file: Path):
        super().__init__("segmentation", file.stem, file)
        self.segmentation = Segmentation(self.segments)

    def GetSegmentation(self) -> Segmentation:
        return self.segmentation


class Scene:
    StartCloseEvent = "start of closing"

    def __init__(self):
        self.nodes: list[Node] = []
        self.removed: list[Node] = []
        self.observers: list = []

    def add(self, node: Node) -> Node:
        self.nodes.append(node)
        return node

    def IsNodePresent(self, node: Node) -> bool:
        return node in self.nodes

    def RemoveNode(self, node: Node) -> None:
        self.removed.append(node)
        for one in self.nodes:
            if one.storage is node:
                one.storage = None

    def Clear(self) -> None:
        for slot in self.observers:
            slot(self, self.StartCloseEvent)
        self.nodes.clear()

    def of_kind(self, kind: str) -> list[Node]:
        return [node for node in self.nodes if node.kind == kind]


class SliceNode:
    """vtkMRMLSliceNode."""

    CenteredJumpSlice = "centred"
    places: list[tuple] = []

    @classmethod
    def JumpAllSlices(cls, scene: Scene, x: float, y: float, z: float, mode: str) -> None:
        assert mode == cls.CenteredJumpSlice
        cls.places.append((x, y, z))


# --- the modules -----------------------------------------------------------------------------------------------------


class Parent(Strict):
    """What Slicer hands to a module and to its widget."""

    NAMES = "title categories dependencies contributors helpText acknowledgementText path"
    ATTRIBUTES = {name: None for name in NAMES.split()} | {"own": None}

    def layout(self) -> Layout:
        self.own = self.own or Layout()
        return self.own


class ScriptedLoadableModule:
    def __init__(self, parent: Parent):
        self.parent = parent


class ScriptedLoadableModuleWidget:
    def __init__(self, parent: Parent):
        self.parent = parent
        self.layout = parent.layout()

    def setup(self) -> None:
        pass


class ScriptedLoadableModuleLogic:
    def __init__(self, parent: object = None):
        self.moduleName = type(self).__name__.removesuffix("Logic")


class ScriptedLoadableModuleTest(unittest.TestCase):
    def runTest(self) -> None:
        raise AssertionError("a module's test has its own")


class VTKObservationMixin:
    def __init__(self):
        self.observed: list = []

    def addObserver(self, scene: Scene, event: str, slot) -> None:
        assert event == Scene.StartCloseEvent
        scene.observers.append(slot)
        self.observed.append((scene, slot))

    def removeObservers(self) -> None:
        for scene, slot in self.observed:
            scene.observers.remove(slot)
        self.observed.clear()


def fake_util(scene: Scene, shown: dict) -> types.ModuleType:
    """slicer.util. shown: where it keeps errors, and what the slices show."""
    util = types.ModuleType("slicer.util")

    @contextmanager
    def tryWithErrorDisplay(message: str, show: bool = True, waitCursor: bool = False):
        try:
            yield
        except Exception as error:
            logging.debug(message, exc_info=True)
            shown["errors"].append(f"{message} {error}")

    def loadVolume(file: str, properties: dict | None = None) -> Node:
        assert set(properties or {}) <= {"name", "labelmap", "singleFile", "autoWindowLevel", "show", "colorNodeID"}
        return scene.add(Node("volume", (properties or {}).get("name", ""), Path(file)))

    def exportNode(node: Node, file: str, properties: dict | None = None, world: bool = False) -> bool:
        assert isinstance(file, str)
        if node.content is not None:
            Path(file).write_bytes(node.content)
        return node.content is not None

    util.VTKObservationMixin = VTKObservationMixin
    util.tryWithErrorDisplay = tryWithErrorDisplay
    util.errorDisplay = lambda text, detailedText="": shown["errors"].append(text)
    util.settingsValue = lambda name, default: Settings.values.get(name, default)
    util.startupEnvironment = lambda: dict(os.environ)
    util.exportNode = exportNode
    util.loadVolume = loadVolume
    util.loadSegmentation = lambda file: scene.add(SegmentationNode(Path(file)))
    util.loadTable = lambda file: scene.add(Node("table", Path(file).stem, Path(file)))
    util.setSliceViewerLayers = lambda **layers: shown.update(layers)
    util.getNodesByClass = lambda name: scene.of_kind({"vtkMRMLSegmentationNode": "segmentation"}[name])
    util.addVolumeFromArray = lambda array: scene.add(array_node(array))
    return util


def array_node(array) -> Node:
    node = Node("volume", "Volume")
    node.content = array.tobytes()
    return node


def install(monkeypatch, temporary: Path) -> types.ModuleType:
    """Make `import slicer`, `qt` and `ctk` give stand-ins. Returns slicer, with `shown` for tests. temporary: a folder."""
    modules = {name: types.ModuleType(name) for name in ("slicer", "qt", "ctk", "slicer.ScriptedLoadableModule")}
    slicer, qt, ctk, scripted = modules.values()
    slicer.mrmlScene, slicer.shown = Scene(), {"errors": []}
    slicer.util = modules["slicer.util"] = fake_util(slicer.mrmlScene, slicer.shown)
    slicer.app = types.SimpleNamespace(temporaryPath=str(temporary))
    slicer.qMRMLNodeComboBox, slicer.qMRMLTableView, slicer.vtkMRMLSliceNode = NodeComboBox, TableView, SliceNode
    for kind in (
        ScriptedLoadableModule,
        ScriptedLoadableModuleWidget,
        ScriptedLoadableModuleLogic,
        ScriptedLoadableModuleTest,
    ):
        setattr(scripted, kind.__name__, kind)
    ctk.ctkCollapsibleButton, ctk.ctkPathLineEdit = CollapsibleButton, PathLineEdit
    qt.QFormLayout, qt.QComboBox, qt.QLineEdit, qt.QPushButton = Layout, ComboBox, LineEdit, Button
    qt.QTextCursor = types.SimpleNamespace(End="end")
    qt.QProgressBar, qt.QLabel, qt.QPlainTextEdit = ProgressBar, Label, PlainTextEdit
    qt.QProcess, qt.QProcessEnvironment, qt.QTimer, qt.QSettings = FakeProcess, ProcessEnvironment, Timer, Settings
    for kind, name, value in (
        (FakeProcess, "started", []),
        (FakeProcess, "real", False),
        (Timer, "waiting", []),
        (Settings, "values", {}),
        (SliceNode, "places", []),
        (SegmentationNode, "segments", 0),
    ):
        monkeypatch.setattr(kind, name, value)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return slicer
