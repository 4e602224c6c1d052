"""V3 nodes of MM-Diff: schemas, checks of user input and calls into mmdiff_model.

Custom sockets: MMDIFF is a mmdiff_model.checkpoint.Checkpoint, MMDIFF_SUBJECT a mmdiff_model.subject.Subject.
"""

from comfy_api.latest import ComfyExtension, io

from .annotate import MMDiffAnnotate
from .apply import MMDiffApply, MMDiffApplyModel, MMDiffTextEncode
from .checkpoints import MMDiffLoader, MMDiffSaveCheckpoint
from .demo import MMDiffDemoCharacter, MMDiffDemoModels, MMDiffDemoScenes
from .encode_subject import MMDiffEncodeSubject
from .evaluate import MMDiffEvaluate
from .face_analysis import MMDiffFaceAnalysisLoader
from .mix import MMDiffMixSubjects
from .report import MMDiffReport
from .routing_preview import MMDiffRoutingPreview
from .subjects import MMDiffLoadSubject, MMDiffSaveSubject, MMDiffSubjectRegion
from .train import MMDiffTrain
from .write_record import MMDiffWriteRecord


class MMDiffExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            MMDiffLoader,
            MMDiffFaceAnalysisLoader,
            MMDiffEncodeSubject,
            MMDiffSubjectRegion,
            MMDiffMixSubjects,
            MMDiffSaveSubject,
            MMDiffLoadSubject,
            MMDiffApply,
            MMDiffTextEncode,
            MMDiffApplyModel,
            MMDiffRoutingPreview,
            MMDiffSaveCheckpoint,
            MMDiffTrain,
            MMDiffEvaluate,
            MMDiffDemoModels,
            MMDiffDemoCharacter,
            MMDiffAnnotate,
            MMDiffWriteRecord,
            MMDiffDemoScenes,
            MMDiffReport,
        ]


async def comfy_entrypoint() -> MMDiffExtension:
    return MMDiffExtension()
