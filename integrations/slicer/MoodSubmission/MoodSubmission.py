"""A module of 3D Slicer that scores a volume by the mood-submission command line, and loads what stands out."""

from __future__ import annotations

import codecs
import logging
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import ctk
import numpy as np
import qt
import slicer
from MoodSubmissionLib.command_line import (
    Choices,
    CommandError,
    environment_of,
    find_program,
    make_folders,
    predict_words,
)
from MoodSubmissionLib.results import Found, Results, ResultsError, read_results, why_it_failed
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin

# The user's choice of a program is kept under this name.
PROGRAM_SETTING = "MoodSubmission/Program"
REGIONS = (("Brain, T1 MRI", "brain"), ("Abdomen, CT", "abdom"))
SKULL_STRIP = (("where there is a skull", "auto"), ("always", "yes"), ("never", "no"))
# Milliseconds from a request to stop to a kill. Programs on Windows know no such request.
PATIENCE = 5000
# Voxel scores below this are not laid over the volume.
LOWEST_SHOWN = 0.05


class MoodSubmission(ScriptedLoadableModule):
    """What Slicer lists the module by."""

    def __init__(self, parent) -> None:
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = "MOOD Anomaly Detection"
        self.parent.categories = ["Segmentation"]
        self.parent.dependencies = []
        self.parent.contributors = ["The authors of mood_submission"]
        self.parent.helpText = (
            "Finds what does not belong in a brain MRI or an abdominal CT, having learnt from healthy scans only. "
            "It runs the mood-submission command line, which is installed apart. For research only, not a medical device."
        )
        self.parent.acknowledgementText = (
            "The method is that of S. N. Marimont and G. Tarroni, Anomaly detection through latent space restoration using "
            "vector-quantized variational autoencoders, arXiv 2012.06765."
        )


class MoodSubmissionWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """The module's panel."""

    def __init__(self, parent=None) -> None:
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic = None
        self.volumeNode = None
        self.findings: tuple[Found, ...] = ()

    def setup(self) -> None:
        """Called when the user opens the module for the first time."""
        ScriptedLoadableModuleWidget.setup(self)
        self.logic = MoodSubmissionLogic(self.onOutput, self.onDone, self.onFailed)
        self.setupChoices()
        self.setupRun()
        self.setupFindings()
        self.layout.addStretch(1)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartCloseEvent, self.onSceneStartClose)
        self.updateButtons()

    def setupChoices(self) -> None:
        section = ctk.ctkCollapsibleButton()
        section.text = "Volume"
        self.layout.addWidget(section)
        form = qt.QFormLayout(section)

        self.inputSelector = slicer.qMRMLNodeComboBox()
        self.inputSelector.nodeTypes = ["vtkMRMLScalarVolumeNode"]
        self.inputSelector.addEnabled = False
        self.inputSelector.removeEnabled = False
        self.inputSelector.noneEnabled = False
        self.inputSelector.showChildNodeTypes = False
        self.inputSelector.setMRMLScene(slicer.mrmlScene)
        self.inputSelector.toolTip = "The volume to score: a T1 brain, or an abdominal CT."
        self.inputSelector.connect("currentNodeChanged(vtkMRMLNode*)", self.updateButtons)
        form.addRow("Volume:", self.inputSelector)

        self.regionSelector = self.addCombo(form, "Region:", REGIONS)
        self.skullStripSelector = self.addCombo(form, "Take off the skull:", SKULL_STRIP)
        self.furtherEdit = qt.QLineEdit()
        self.furtherEdit.toolTip = "Further options of mood-submission predict, such as --restorations 0 --device cpu."
        form.addRow("Further options:", self.furtherEdit)

        self.programEdit = ctk.ctkPathLineEdit()
        self.programEdit.toolTip = (
            "mood-submission, its Python, its virtual environment or its checkout. Empty: look for it."
        )
        self.programEdit.currentPath = slicer.util.settingsValue(PROGRAM_SETTING, "")
        form.addRow("Program:", self.programEdit)

    def addCombo(self, form, label: str, choices: tuple[tuple[str, str], ...]):
        """A row to choose from. choices: the texts, and the words that they stand for."""
        combo = qt.QComboBox()
        for text, word in choices:
            combo.addItem(text, word)
        form.addRow(label, combo)
        return combo

    def setupRun(self) -> None:
        self.applyButton = qt.QPushButton("Score")
        self.applyButton.toolTip = "Score the volume in the background."
        self.applyButton.connect("clicked(bool)", self.onApplyButton)
        self.layout.addWidget(self.applyButton)
        self.cancelButton = qt.QPushButton("Cancel")
        self.cancelButton.connect("clicked(bool)", self.onCancelButton)
        self.layout.addWidget(self.cancelButton)
        self.progressBar = qt.QProgressBar()
        # A bar that only moves: how long one volume takes is not known.
        self.progressBar.setRange(0, 0)
        self.layout.addWidget(self.progressBar)
        self.statusLabel = qt.QLabel("")
        self.statusLabel.wordWrap = True
        self.layout.addWidget(self.statusLabel)
        self.log = qt.QPlainTextEdit()
        self.log.readOnly = True
        self.layout.addWidget(self.log)

    def setupFindings(self) -> None:
        section = ctk.ctkCollapsibleButton()
        section.text = "Findings"
        self.layout.addWidget(section)
        form = qt.QFormLayout(section)
        self.findingSelector = qt.QComboBox()
        self.findingSelector.toolTip = "The slices jump to the finding that is chosen."
        self.findingSelector.connect("activated(int)", self.onFindingChosen)
        form.addRow("Go to:", self.findingSelector)
        self.tableView = slicer.qMRMLTableView()
        self.tableView.setMRMLScene(slicer.mrmlScene)
        form.addRow(self.tableView)

    def cleanup(self) -> None:
        """Called when the application closes and the module's widget is destroyed, and before it is reloaded."""
        if self.logic is not None:
            self.logic.kill()
        self.removeObservers()

    def onSceneStartClose(self, caller, event) -> None:
        """The volume goes, and so does what is being made of it."""
        self.logic.cancel()
        self.showFindings(())

    def updateButtons(self, *_) -> None:
        running = self.logic.isRunning
        self.applyButton.enabled = not running and self.inputSelector.currentNode() is not None
        self.cancelButton.enabled = running
        self.progressBar.visible = running

    def onApplyButton(self, *_) -> None:
        self.volumeNode = self.inputSelector.currentNode()
        program = self.programEdit.currentPath
        choices = Choices(
            region=self.regionSelector.currentData,
            skull_strip=self.skullStripSelector.currentData,
            further=self.furtherEdit.text,
        )
        qt.QSettings().setValue(PROGRAM_SETTING, program)
        self.log.clear()
        self.statusLabel.text = f"Scoring {self.volumeNode.GetName()} ..."
        try:
            self.logic.start(self.volumeNode, program, choices)
        except (CommandError, OSError) as error:
            self.onFailed(str(error))
        self.updateButtons()

    def onCancelButton(self, *_) -> None:
        self.statusLabel.text = "Stopping ..."
        self.logic.cancel()

    def onOutput(self, text: str) -> None:
        self.log.moveCursor(qt.QTextCursor.End)
        self.log.insertPlainText(text)

    def onDone(self, results: Results) -> None:
        """The run is over, and its files are there until this ends."""
        self.updateButtons()
        with slicer.util.tryWithErrorDisplay("The results cannot be loaded.", waitCursor=True):
            table = self.logic.load(results, self.volumeNode)
            self.tableView.setMRMLTableNode(table)
            self.statusLabel.text = results.summary
            self.showFindings(results.findings)

    def onFailed(self, message: str) -> None:
        """The run is over without results. message: empty where the user stopped it."""
        self.updateButtons()
        self.statusLabel.text = message or "Stopped"
        if message:
            slicer.util.errorDisplay(message, detailedText=self.log.plainText)

    def showFindings(self, findings: tuple[Found, ...]) -> None:
        self.findings = findings
        self.findingSelector.clear()
        for one in findings:
            self.findingSelector.addItem(one.label)
        if findings:
            self.onFindingChosen(0)

    def onFindingChosen(self, index: int) -> None:
        if 0 <= index < len(self.findings):
            self.logic.goTo(self.findings[index], self.volumeNode)


class MoodSubmissionLogic(ScriptedLoadableModuleLogic):
    """One run of the command line at a time, and loading of its results. It needs no widgets."""

    def __init__(
        self,
        onOutput: Callable[[str], None] = logging.info,
        onDone: Callable[[Results], None] = lambda results: None,
        onFailed: Callable[[str], None] = logging.error,
    ) -> None:
        """The functions are called with what the program writes, with results, and with a line on what went wrong."""
        ScriptedLoadableModuleLogic.__init__(self)
        self.onOutput, self.onDone, self.onFailed = onOutput, onDone, onFailed
        self.process = None
        self.folder: Path | None = None
        self.output = ""
        self.cancelled = False

    @property
    def isRunning(self) -> bool:
        return self.process is not None

    def start(self, volumeNode, program: str, choices: Choices) -> None:
        """Score a volume in the background.

        program: for `find_program`.
        Raises CommandError where there is no program, OSError where the volume cannot be written.
        """
        if self.isRunning:
            raise CommandError("expected one run at a time, found one that is not over")
        environment = slicer.util.startupEnvironment()
        found = find_program(program, environment)
        self.folder = Path(tempfile.mkdtemp(prefix="MoodSubmission-", dir=slicer.app.temporaryPath))
        try:
            words = [*found.words, *predict_words(choices, self.folder)]
            file = make_folders(self.folder)
            slicer.util.exportNode(volumeNode, str(file))
            if not file.is_file():
                raise OSError(f"expected Slicer to write {volumeNode.GetName()} to {file}, found no such file")
        except (CommandError, OSError):
            self.removeFolder()
            raise
        self.output, self.cancelled = "", False
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.startProcess(words, environment_of(found, environment))

    def startProcess(self, words: list[str], environment: dict[str, str]) -> None:
        variables = qt.QProcessEnvironment()
        for name, value in environment.items():
            variables.insert(name, value)
        self.process = qt.QProcess()
        self.process.setProcessEnvironment(variables)
        self.process.setProcessChannelMode(qt.QProcess.MergedChannels)
        self.process.connect("readyReadStandardOutput()", self.readOutput)
        self.process.connect("finished(int,QProcess::ExitStatus)", self.onFinished)
        self.process.connect("errorOccurred(QProcess::ProcessError)", self.onErrorOccurred)
        self.process.start(words[0], words[1:])

    def cancel(self) -> None:
        """Ask the program to stop, and kill it where it does not. `onFailed` follows."""
        if not self.isRunning:
            return
        self.cancelled = True
        process = self.process
        process.terminate()
        qt.QTimer.singleShot(PATIENCE, lambda: process.kill() if process is self.process else None)

    def kill(self) -> None:
        """End the program at once. Nothing is told."""
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            process.waitForFinished(PATIENCE)
        self.removeFolder()

    def readOutput(self) -> None:
        if self.process is None:
            return
        text = self.decoder.decode(bytes(self.process.readAllStandardOutput().data()))
        if text:
            self.output += text
            self.onOutput(text)

    def onFinished(self, exitCode: int, exitStatus) -> None:
        if self.process is None:
            return
        self.readOutput()
        status = exitCode if exitStatus == qt.QProcess.NormalExit else None
        if self.cancelled:
            self.fail("")
        elif status != 0:
            self.fail(why_it_failed(self.output, status))
        else:
            self.succeed()

    def onErrorOccurred(self, error) -> None:
        """Of a program that does not start. Others end by `onFinished`, too."""
        if self.process is not None and error == qt.QProcess.FailedToStart:
            self.fail(f"mood-submission does not start: {self.process.errorString()}")

    def succeed(self) -> None:
        try:
            results = read_results(self.folder)
        except ResultsError as error:
            self.fail(str(error))
            return
        self.process = None
        try:
            self.onDone(results)
        finally:
            self.removeFolder()

    def fail(self, message: str) -> None:
        self.process = None
        self.removeFolder()
        self.onFailed(message)

    def removeFolder(self) -> None:
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder = None

    def load(self, results: Results, volumeNode):
        """Add scores, findings and their table to the scene, and lay the scores over the volume. Returns the table's node.

        Raises RuntimeError where the volume is no longer in the scene, or a file cannot be loaded.
        """
        if not slicer.mrmlScene.IsNodePresent(volumeNode):
            raise RuntimeError("expected the volume in the scene, found that it was removed")
        name = volumeNode.GetName()
        scores = slicer.util.loadVolume(
            str(results.scores), {"name": f"{name} anomaly scores", "singleFile": True, "show": False}
        )
        self.colour(scores.GetDisplayNode())
        segmentation = slicer.util.loadSegmentation(str(results.mask)) if results.findings else None
        if segmentation is not None:
            segmentation.SetName(f"{name} findings")
            self.nameSegments(segmentation.GetSegmentation(), results.findings)
        table = slicer.util.loadTable(str(results.table))
        table.SetName(f"{name} findings table")
        for node in filter(None, (scores, segmentation)):
            # A volume that is moved by a transform takes its results along.
            node.SetAndObserveTransformNodeID(volumeNode.GetTransformNodeID())
        for node in filter(None, (scores, segmentation, table)):
            # The files are deleted. Without this, a saved scene would name them.
            if node.GetStorageNode() is not None:
                slicer.mrmlScene.RemoveNode(node.GetStorageNode())
        slicer.util.setSliceViewerLayers(background=volumeNode, foreground=scores, foregroundOpacity=0.3)
        return table

    def colour(self, display) -> None:
        """Show scores from 0 to 1 in the same colours in every volume, and the lowest not at all."""
        display.SetAndObserveColorNodeID("vtkMRMLColorTableNodeFileColdToHotRainbow.txt")
        display.SetAutoWindowLevel(False)
        display.SetWindowLevelMinMax(0.0, 1.0)
        display.SetAutoThreshold(False)
        display.SetThreshold(LOWEST_SHOWN, 1.0)
        display.SetApplyThreshold(True)

    def nameSegments(self, segmentation, findings: tuple[Found, ...]) -> None:
        """Segments are in the order of the mask's numbers, which is the findings'."""
        if segmentation.GetNumberOfSegments() == len(findings):
            for index, one in enumerate(findings):
                segmentation.GetNthSegment(index).SetName(one.label)

    def goTo(self, finding: Found, volumeNode) -> None:
        """Make all slices show the centre of a finding, which a transform may have moved along with the volume."""
        centre = [0.0, 0.0, 0.0]
        volumeNode.TransformPointToWorld(list(finding.centre), centre)
        slicer.vtkMRMLSliceNode.JumpAllSlices(slicer.mrmlScene, *centre, slicer.vtkMRMLSliceNode.CenteredJumpSlice)


class MoodSubmissionTest(ScriptedLoadableModuleTest):
    """Run in Slicer by "Reload and Test" of its developer mode."""

    def setUp(self) -> None:
        slicer.mrmlScene.Clear()

    def runTest(self) -> None:
        self.setUp()
        self.test_aMissingProgramIsTold()
        self.setUp()
        self.test_findingsAreLoaded()

    def test_aMissingProgramIsTold(self) -> None:
        volumeNode = slicer.util.addVolumeFromArray(np.zeros((4, 5, 6), np.float32))
        logic = MoodSubmissionLogic()
        with self.assertRaises(CommandError):
            logic.start(volumeNode, "/no/such/program", Choices("brain"))
        self.assertFalse(logic.isRunning)

    def test_findingsAreLoaded(self) -> None:
        """From files like those of a run, which are deleted afterwards."""
        labels = np.zeros((4, 5, 6), np.uint8)
        labels[1, 1:3, 1:3], labels[2, 3:, 4:] = 1, 2
        volumeNode = slicer.util.addVolumeFromArray(labels.astype(np.float32))
        folder = Path(tempfile.mkdtemp(prefix="MoodSubmission-", dir=slicer.app.temporaryPath))
        mask, table = folder / "volume.nrrd", folder / "table.csv"
        slicer.util.exportNode(volumeNode, str(mask))
        table.write_text("Finding,Highest score\n1,0.9\n2,0.8\n", encoding="utf-8")
        findings = tuple(Found(n, (0.0, 0.0, 0.0), 1.0, 1 - n / 10, None) for n in (1, 2))
        MoodSubmissionLogic().load(Results(0.5, findings, mask, mask, table), volumeNode)
        shutil.rmtree(folder)
        (node,) = slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
        segments = [node.GetSegmentation().GetNthSegment(index) for index in (0, 1)]
        self.assertEqual([one.GetName() for one in segments], ["Finding 1, score 0.90", "Finding 2, score 0.80"])
