"""Own Gradio components: constant templates, data only through `value`, DOM built with `textContent`.

    TokenView    heat map and span editor      events: input {selected}, select {position}, confirm {}
    LiveChart    loss, KL, rates on one axis   events: resync {have}
    PlotlyView   one still figure              events: select {position}
    TableView    sortable table, CSV           events: select {key}
    StatusBar    what runs, connection         events: none
    AnswerPairs  answers before and after      events: none

Values are built by `dashboard.figures`. Every constructor takes `value=None` and Gradio's own keywords
(`elem_id`, `elem_classes`, `visible`, ...). Give `launch(head=page_head() + ...)` and mount plotly.js at `PLOTLY_URL`.
"""

from dashboard.components.answer_pairs import AnswerPairs
from dashboard.components.assets import PLOTLY_URL, page_css, page_head, script
from dashboard.components.live_chart import LiveChart
from dashboard.components.plot_view import PlotlyView
from dashboard.components.status_bar import StatusBar
from dashboard.components.table_view import TableView
from dashboard.components.token_view import TokenView

__all__ = [
    "PLOTLY_URL",
    "AnswerPairs",
    "LiveChart",
    "PlotlyView",
    "StatusBar",
    "TableView",
    "TokenView",
    "page_css",
    "page_head",
    "script",
]
