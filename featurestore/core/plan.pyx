"""Copies a checked `featurestore.plan.Plan` into C structs; see plan.pxd for what each holds.

The plan was made by `featurestore.schema`, or read back from the journal where a checksum covers it. Its
indexes are checked here all the same, once, because nothing on the hot path checks them again.
"""

import hashlib

cimport cython
from libc.math cimport NAN
from libc.stdlib cimport calloc, free, realloc
from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t, uint16_t, uint64_t
from libc.string cimport memcpy

from featurestore.core.batch cimport COLUMN_NUMBER, COLUMN_TEXT
from featurestore.core.countmin cimport COUNTER_COUNT, COUNTER_SUM, MAX_LEVELS, CountminC, countmin_c
from featurestore.core.distinct cimport (
    MAX_EXACT_VALUES, MAX_KEEP_MS, MAX_LOG2_REGISTERS, MIN_LOG2_REGISTERS, distinct_c,
)
from featurestore.core.program cimport CompiledFormula, CompiledProgram, ProgramC
from featurestore.core.top cimport top_plan_ok

from featurestore.core.structs import same_structs
from featurestore.plan import MAX_FUTURE_MS, Aggregate, Kind, Op, Part, Structure, needs_field

same_structs(__name__, plan_structs())

cdef enum:
    HOURS = 24                   # of the day

cdef double CONFIDENCE_Z = 1.959963984540054     # standard errors: bounds that are not certain hold at 95 %


def _span(view):
    """Views of one span have taken and kept the same events, as far as their filters let them pass."""
    return view.event, view.entity, view.offset_ms, view.keep_ms, view.floor_ms, view.since_ms


def _check(bint holds, str what):
    if not holds:
        raise ValueError(f"plan: {what}")


def _check_duration(n_ms, str what):
    _check(0 <= n_ms <= LONG_MS, f"{what} of {n_ms} ms")


def _check_time(time_ms, str what):
    _check(time_ms is None or -FAR_MS <= time_ms <= FAR_MS, f"{what} {time_ms} ms")


@cython.final
cdef class CompiledPlan:
    def __cinit__(self, plan not None, CompiledPlan previous=None):
        """`previous`: the plan that the state was built with, so that logs of views it loses can still be
        freed. What is needed of it is copied: it lives no longer than whoever reads with it."""
        cdef size_t i
        self.plan = plan
        self.programs = []
        _check(len(plan.entities) < 0x7FFF and len(plan.events) < 0x7FFF,
               "more than 32,767 entities or event types")
        _check(len(plan.views) < 0x7FFF and len(plan.served) < 0x7FFF, "more than 32,767 views or services")
        self.c = <PlanC*>self._array(1, sizeof(PlanC))
        self.c.n_entities = len(plan.entities)
        self.c.n_events = len(plan.events)
        self.c.n_views = len(plan.views)
        self.c.n_services = len(plan.served)
        self.c.entities = <EntityC*>self._array(len(plan.entities), sizeof(EntityC))
        self.c.events = <EventC*>self._array(len(plan.events), sizeof(EventC))
        self.c.views = <ViewC*>self._array(len(plan.views), sizeof(ViewC))
        self.c.services = <ServiceC*>self._array(len(plan.served), sizeof(ServiceC))
        self.part_names = tuple(sorted({part for entity in plan.entities for part in entity.parts}))
        _check(len(self.part_names) < 0x7FFF, "more than 32,767 key parts")
        self.c.n_part_names = len(self.part_names)
        for i, entity in enumerate(plan.entities):
            _check(len(entity.parts) <= MAX_KEY_PARTS, f"a key of more than {MAX_KEY_PARTS} parts")
            self.c.entities[i].entity_id = entity.entity_id
            self.c.entities[i].n_parts = len(entity.parts)
            self.c.entities[i].key_epoch = entity.key_epoch
            self.c.entities[i].keep_keys = entity.keep_keys
            self.c.entities[i].parts = self._indexes(
                [self.part_names.index(part) for part in entity.parts], len(self.part_names), "part")
        local_programs = self._events()
        for view in plan.views:
            fields = [1] if view.structure == Structure.DISTINCT else [0, 1]
            _check(view.structure == Structure.LOG
                   or (len(view.values) in fields and not view.columns and not view.filters),
                   f"view {view.name}: a sketch is of one field and has no columns or filters")
        self.hashed_of = [self._hashed(i) for i in range(len(plan.events))]
        windowed = {feature.view for feature in plan.features if feature.window_ms}
        for i in range(len(plan.views)):
            self._view(i, local_programs)
            self.c.views[i].has_windows = i in windowed
        self._counted()
        self._sketched()
        self._touches(previous)
        self._formulas()
        for i in range(len(plan.served)):
            self._service(i)

    def __dealloc__(self):
        cdef size_t i
        for i in range(self.n_blocks):
            free(self.blocks[i])
        free(self.blocks)

    cdef void* _array(self, size_t n, size_t item_bytes) except NULL:
        """A zeroed array that lives as long as this object."""
        cdef void** blocks
        cdef void* block
        if self.n_blocks == self.cap_blocks:
            blocks = <void**>realloc(self.blocks, (self.cap_blocks * 2 + 16) * sizeof(void*))
            if blocks == NULL:
                raise MemoryError
            self.blocks = blocks
            self.cap_blocks = self.cap_blocks * 2 + 16
        block = calloc(n if n else 1, item_bytes)
        if block == NULL:
            raise MemoryError
        self.blocks[self.n_blocks] = block
        self.n_blocks += 1
        return block

    cdef uint16_t* _indexes(self, items, size_t limit, str what) except NULL:
        cdef uint16_t* out = <uint16_t*>self._array(len(items), sizeof(uint16_t))
        cdef size_t i
        for i, item in enumerate(items):
            _check(0 <= item < limit, f"{what} {item} does not exist")
            out[i] = item
        return out

    def _events(self):
        """Fills events; returns, per event type, {index in Plan.programs: index among the type's own
        programs}."""
        cdef size_t i, j
        cdef EventC* event
        cdef CompiledProgram compiled
        local_programs = [{} for _ in self.plan.events]
        compiled_of = [[] for _ in self.plan.events]
        for index, program in enumerate(self.plan.programs):
            _check(0 <= program.event < len(self.plan.events), f"program {index} is of an unknown event type")
            compiled = CompiledProgram(program, self.plan.events[program.event])
            self.programs.append(compiled)
            local_programs[program.event][index] = len(compiled_of[program.event])
            compiled_of[program.event].append(compiled)
        for i, spec in enumerate(self.plan.events):
            event = &self.c.events[i]
            _check(len(spec.fields) <= 0xFFFF and len(compiled_of[i]) <= 0xFFFF,
                   f"event {spec.name}: more than 65,535 fields or filters")
            _check(spec.time.unit in ("s", "ms", "us", "ns", "iso"),
                   f"event {spec.name}: time in {spec.time.unit}")
            event.event_id = spec.event_id
            event.n_fields = len(spec.fields)
            event.kinds = <uint8_t*>self._array(event.n_fields, 1)
            for j, field in enumerate(spec.fields):
                event.kinds[j] = COLUMN_TEXT if field.kind == Kind.TEXT else COLUMN_NUMBER
            event.id_field = -1 if spec.id_field is None else spec.id_field
            _check(-1 <= event.id_field < event.n_fields, f"id field of {spec.name}")
            _check(event.id_field < 0 or event.kinds[event.id_field] == COLUMN_TEXT,
                   f"event {spec.name}: its id is not text")
            _check_duration(spec.dedupe_ms, f"event {spec.name}: dedupe")
            _check_time(spec.dedupe_floor_ms, f"event {spec.name}: dedupe floor")
            event.dedupe_ms = spec.dedupe_ms
            names = [field.name for field in spec.fields]
            event.by_name = self._indexes(
                sorted(range(len(names)), key=names.__getitem__), len(names), "field")
            event.name_words = <uint64_t*>self._array(len(names), sizeof(uint64_t))
            for j, name in enumerate(names):
                event.name_words[j] = int.from_bytes(
                    hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
            event.n_programs = len(compiled_of[i])
            event.programs = <ProgramC**>self._array(event.n_programs, sizeof(void*))
            for j in range(event.n_programs):
                compiled = compiled_of[i][j]
                event.programs[j] = compiled.c
        return local_programs

    def _hashed(self, size_t index):
        """The fields of one event type whose values are hashed; returns {index among fields: index here}."""
        cdef EventC* event = &self.c.events[index]
        fields = self.plan.events[index].fields
        hashed = sorted({view.values[0] for view in self.plan.views if view.event == index and view.values
                         and view.structure in (Structure.DISTINCT, Structure.TOP)})
        _check(all(0 <= field < len(fields) for field in hashed), "a structure of values has no such field")
        event.n_hashed = len(hashed)
        event.hashed = <HashedC*>self._array(len(hashed), sizeof(HashedC))
        for i, field in enumerate(hashed):
            event.hashed[<size_t>i].field = field
            event.hashed[<size_t>i].is_key = fields[field].is_key
        return {field: i for i, field in enumerate(hashed)}

    def _view(self, size_t index, list local_programs):
        cdef ViewC* view = &self.c.views[index]
        cdef ColumnC* column
        cdef size_t i, at = WIDE_HEAD, n_weights = 1
        spec = self.plan.views[index]
        _check(0 <= spec.event < len(self.plan.events), f"view {spec.name}: unknown event type")
        _check(0 <= spec.entity < len(self.plan.entities), f"view {spec.name}: unknown entity")
        _check(0 <= spec.view_id < 0xFFFF, f"view {spec.name}: view ids are used up")
        programs = local_programs[spec.event]
        view.view_id = spec.view_id
        view.event = spec.event
        view.entity = spec.entity
        view.where = -1 if spec.where is None else programs[spec.where]
        _check_duration(spec.offset_ms, f"view {spec.name}: offset")
        _check_duration(spec.keep_ms, f"view {spec.name}: keep")
        _check_duration(spec.lifetime_idle_ms, f"view {spec.name}: lifetime_idle")
        _check_time(spec.floor_ms, f"view {spec.name}: floor")
        _check_time(spec.since_ms, f"view {spec.name}: since")
        _check_time(spec.lifetime_floor_ms, f"view {spec.name}: lifetime floor")
        view.offset_ms = spec.offset_ms
        view.keep_ms = spec.keep_ms
        view.floor_ms = UNSET_MS if spec.floor_ms is None else spec.floor_ms
        view.lifetime_idle_ms = spec.lifetime_idle_ms
        view.since_ms = -FAR_MS if self.plan.events[spec.event].from_beginning else UNSET_MS
        if spec.since_ms is not None:
            view.since_ms = spec.since_ms
        view.lifetime_floor_ms = UNSET_MS if spec.lifetime_floor_ms is None else spec.lifetime_floor_ms
        view.max_error = spec.max_error
        view.exact_events = spec.exact_events
        view.max_entries = spec.max_entries
        _check(0 < spec.max_error <= 0.5 and 1 <= spec.exact_events <= 1 << 20,
               f"view {spec.name}: error settings")
        _check((spec.exact_events <= spec.max_entries or spec.structure == Structure.TOP)
               and spec.max_entries <= 1 << 22, f"view {spec.name}: max_entries")
        _check(len(spec.filters) <= 48 and len(spec.columns) <= 64,
               f"view {spec.name}: too many filters or columns")
        _check(len(spec.values) <= MAX_VALUES, f"view {spec.name}: more than {MAX_VALUES} fields")
        view.has_lifetime = spec.has_lifetime
        view.structure = int(spec.structure)
        if spec.structure == Structure.DISTINCT:
            _check(1 <= spec.exact_values <= MAX_EXACT_VALUES
                   and MIN_LOG2_REGISTERS <= spec.log2_registers <= MAX_LOG2_REGISTERS
                   and 0 < spec.keep_ms <= MAX_KEEP_MS and spec.offset_ms == 0 and not spec.has_lifetime,
                   f"view {spec.name}: settings of distinct values")
            view.hashed = self.hashed_of[spec.event][spec.values[0]]
            view.distinct = distinct_c(spec.exact_values, spec.log2_registers, CONFIDENCE_Z, spec.keep_ms)
        elif spec.structure == Structure.DECAYED:
            _check(0 < spec.half_life_ms and spec.offset_ms == 0 and not spec.has_lifetime
                   and all(self.plan.events[spec.event].fields[f].kind == Kind.NUMBER for f in spec.values),
                   f"view {spec.name}: settings of decayed sums")
            view.decayed.half_life_ms = spec.half_life_ms
            view.decayed.sums = len(spec.values)
        elif spec.structure == Structure.COUNTMIN:
            self._countmin(spec, view)
        elif spec.structure == Structure.TOP:
            _check(0 <= spec.k <= 0xFFFF and 0 <= spec.n_counters <= 0xFFFF and spec.max_entries >= 0
                   and 0 <= spec.max_text_bytes < 1 << 32 and spec.offset_ms == 0 and not spec.has_lifetime,
                   f"view {spec.name}: settings of heaviest values")
            if spec.values:
                view.hashed = self.hashed_of[spec.event][spec.values[0]]
            view.top.max_error = spec.max_error
            view.top.exact_events = spec.exact_events
            view.top.max_entries = spec.max_entries
            view.top.max_text_bytes = spec.max_text_bytes
            view.top.k = spec.k
            view.top.n_counters = spec.n_counters
            _check(top_plan_ok(&view.top) and (spec.values or spec.n_counters >= HOURS),
                   f"view {spec.name}: settings of heaviest values")
        view.n_values = len(spec.values)
        view.values = self._indexes(spec.values, len(self.plan.events[spec.event].fields),
                                    f"view {spec.name}: field")
        for i in range(view.n_values):
            _check(spec.structure in (Structure.DISTINCT, Structure.TOP)
                   or self.c.events[view.event].kinds[view.values[i]] == COLUMN_NUMBER,
                   f"view {spec.name}: a value that is not a number")
        view.n_filters = len(spec.filters)
        view.filters = self._indexes([programs[f] for f in spec.filters], len(programs),
                                     f"view {spec.name}: filter")
        view.n_columns = len(spec.columns)
        view.columns = <ColumnC*>self._array(view.n_columns, sizeof(ColumnC))
        for i, column_spec in enumerate(spec.columns):
            column = &view.columns[i]
            column.value = -1 if column_spec.value is None else column_spec.value
            column.filter = -1 if column_spec.filter is None else column_spec.filter
            _check(-1 <= column.value < view.n_values and -1 <= column.filter < view.n_filters,
                   f"view {spec.name}: column {i}")
            _check(not int(column_spec.parts) & ~int(~Part(0)),
                   f"view {spec.name}: column {i} keeps what nobody knows")
            column.n_at = at
            at += 1
            n_weights += 1
            if Part.SUM in column_spec.parts:
                column.sum_at = at
                view.n_sums += 1
                at += 3
                n_weights += 2
            if Part.EXTREMES in column_spec.parts:
                column.extremes_at = at
                at += 2
            if Part.MOMENTS in column_spec.parts:
                _check(column.extremes_at, f"view {spec.name}: moments without their extremes")
                column.moments_at = at
                at += 2
            if Part.FIRST in column_spec.parts:
                column.first_at = at
                at += 2
            if Part.LAST in column_spec.parts:
                column.last_at = at
                at += 2
            if Part.GAPS in column_spec.parts:
                _check(column.first_at and column.last_at, f"view {spec.name}: gaps without their ends")
                column.gaps_at = at
                at += 2
        _check(at <= MAX_WIDE_WORDS, f"view {spec.name}: too many columns")
        view.wide_words = at
        view.raw_words = 1 + view.n_values + (1 if view.n_filters else 0)
        self._weights(view, n_weights)
        self.c.max_view_id = max(self.c.max_view_id, view.view_id)
        self.c.max_raw_words = max(self.c.max_raw_words, view.raw_words)
        self.c.max_wide_words = max(self.c.max_wide_words, view.wide_words)

    def _counted(self):
        """Finds, for each view of distinct values, a log of the events that these are values of: how many
        they are says something of how many values there are."""
        cdef ViewC* view
        for index, spec in enumerate(self.plan.views):
            view = &self.c.views[<size_t>index]
            view.counted_by = -1
            if spec.structure != Structure.DISTINCT:
                continue
            filtered = None if spec.where is None else self.plan.programs[spec.where]
            view.needs_value = filtered is not None and needs_field(filtered, spec.values[0])
            for other, log in enumerate(self.plan.views):
                if (log.structure != Structure.LOG or not self.c.views[<size_t>other].has_windows
                        or _span(log) != _span(spec)):
                    continue
                column = self._column_of(log, spec.where)
                if column is not None:
                    view.counted_by = other
                    view.counted_column = column
                    break

    def _column_of(self, log, where):
        """The column of a log that counts what the filter lets pass; None: it has none."""
        if log.where == where:
            return NO_COLUMN
        if where is None:
            return None
        programs = self.plan.programs
        before = () if log.where is None else programs[log.where].ops
        for i, column in enumerate(log.columns):
            if column.value is None and column.filter is not None:
                ops = programs[log.filters[column.filter]].ops
                if programs[where].ops == ((*before, *ops, Op("and")) if before else ops):
                    return i
        return None

    cdef int _weights(self, ViewC* view, size_t n) except -1:
        cdef size_t i
        view.weights = <WeightC*>self._array(n, sizeof(WeightC))
        view.weights[0].at = WIDE_COUNT
        view.n_weights = 1
        for i in range(view.n_columns):
            view.weights[view.n_weights].at = view.columns[i].n_at
            view.n_weights += 1
            if view.columns[i].sum_at:
                view.weights[view.n_weights].at = view.columns[i].sum_at
                view.weights[view.n_weights].is_float = 1
                view.weights[view.n_weights + 1].at = view.columns[i].sum_at + 1
                view.weights[view.n_weights + 1].is_float = 1
                view.n_weights += 2
        return 0

    cdef int _countmin(self, spec, ViewC* view) except -1:
        cdef int64_t windows_ms[MAX_LEVELS]
        cdef uint32_t i, n = len(spec.windows_ms)
        what = f"view {spec.name}: settings of its sketch"
        view.countmin = <CountminC*>self._array(1, sizeof(CountminC))
        _check(0 < n <= MAX_LEVELS and spec.offset_ms == 0 and not spec.has_lifetime and spec.floor_ms is None
               and 0 < spec.n_slices <= 0xFF, what)
        for i, window_ms in enumerate(spec.windows_ms):
            _check_duration(window_ms, f"view {spec.name}: window")
            windows_ms[i] = window_ms
        _check(windows_ms[n - 1] <= view.keep_ms, what)
        _check(all(self.plan.events[spec.event].fields[f].kind == Kind.NUMBER for f in spec.values), what)
        # An event that the clock lets in is never late for the sketch, whose newest may be ahead of it.
        _check(countmin_c(view.countmin, windows_ms, n, view.keep_ms - windows_ms[n - 1] + MAX_FUTURE_MS,
                          spec.n_slices, COUNTER_SUM if len(spec.values) else COUNTER_COUNT, spec.epsilon,
                          spec.delta) == 0, what)
        return 0

    def _sketched(self):
        cdef size_t i
        sketched = sorted((view.view_id, index) for index, view in enumerate(self.plan.views)
                          if view.structure == Structure.COUNTMIN)
        self.c.n_sketched = len(sketched)
        self.c.sketched = self._indexes([index for _, index in sketched], len(self.plan.views), "view")
        for i in range(self.c.n_sketched):
            self.c.views[self.c.sketched[i]].sketch = i

    cdef const ViewC* _copied(self, const ViewC* view) except? NULL:
        """The layout of a view that is gone, with all it points to."""
        cdef ViewC* copy
        if view == NULL:
            return NULL
        copy = <ViewC*>self._copy(view, 1, sizeof(ViewC))
        copy.values = <uint16_t*>self._copy(view.values, view.n_values, sizeof(uint16_t))
        copy.filters = <uint16_t*>self._copy(view.filters, view.n_filters, sizeof(uint16_t))
        copy.columns = <ColumnC*>self._copy(view.columns, view.n_columns, sizeof(ColumnC))
        copy.weights = <WeightC*>self._copy(view.weights, view.n_weights, sizeof(WeightC))
        if view.countmin != NULL:
            copy.countmin = <CountminC*>self._copy(view.countmin, 1, sizeof(CountminC))
        return copy

    cdef void* _copy(self, const void* items, size_t n, size_t item_bytes) except NULL:
        cdef void* copy = self._array(n, item_bytes)
        memcpy(copy, items, n * item_bytes)
        return copy

    def _touches(self, CompiledPlan previous):
        cdef size_t i, j
        cdef EventC* event
        cdef TouchC* touch
        if previous is not None:
            self.c.max_view_id = max(self.c.max_view_id, previous.c.max_view_id)
        self.c.view_of_id = <int32_t*>self._array(self.c.max_view_id + 1, sizeof(int32_t))
        view_ids = {view.view_id for view in self.plan.views}
        self.c.layout_of_id = <const ViewC**>self._array(self.c.max_view_id + 1, sizeof(void*))
        for i in range(self.c.max_view_id + 1):
            self.c.view_of_id[i] = -1
            if previous is not None and i <= previous.c.max_view_id and i not in view_ids:
                self.c.layout_of_id[i] = self._copied(previous.c.layout_of_id[i])
        per_entity = [0] * len(self.plan.entities)
        for i, view in enumerate(self.plan.views):
            _check(self.c.view_of_id[view.view_id] == -1, f"view id {view.view_id} is given twice")
            self.c.view_of_id[view.view_id] = i
            self.c.layout_of_id[view.view_id] = &self.c.views[i]
            per_entity[view.entity] += view.structure != Structure.COUNTMIN
        _check(max(per_entity, default=0) <= MAX_VIEWS_PER_ENTITY,
               f"more than {MAX_VIEWS_PER_ENTITY} views of one entity")
        for i, spec in enumerate(self.plan.events):
            event = &self.c.events[i]
            _check(len({touch_spec.entity for touch_spec in spec.touches}) == len(spec.touches),
                   f"event {spec.name}: an entity twice")
            _check(len(spec.touches) <= MAX_TOUCHES, f"event {spec.name}: more than {MAX_TOUCHES} keys")
            event.n_touches = len(spec.touches)
            event.touches = <TouchC*>self._array(event.n_touches, sizeof(TouchC))
            event.min_keep_ms = (<int64_t>1) << 61
            event.max_floor_ms = UNSET_MS
            for j, touch_spec in enumerate(spec.touches):
                touch = &event.touches[j]
                _check(0 <= touch_spec.entity < len(self.plan.entities), f"event {spec.name}: unknown entity")
                entity = self.plan.entities[touch_spec.entity]
                touch.entity = touch_spec.entity
                touch.entity_id = entity.entity_id
                touch.keep_keys = entity.keep_keys
                touch.n_fields = len(touch_spec.fields)
                _check(touch.n_fields == len(entity.parts), f"event {spec.name}: key of {entity.parts}")
                touch.fields = self._indexes(touch_spec.fields, len(spec.fields), f"event {spec.name}: field")
                _check(all(spec.fields[f].kind == Kind.TEXT for f in touch_spec.fields),
                       f"event {spec.name}: key is not text")
                views = [k for k, v in enumerate(self.plan.views) if v.event == i
                         and v.entity == touch_spec.entity]
                touch.n_views, views = self._rows_first(views)
                touch.n_all = len(views)
                touch.views = self._indexes(views, len(self.plan.views), "view")
                for k in views:
                    event.min_keep_ms = min(event.min_keep_ms, self.c.views[<size_t>k].keep_ms)
                    if self.c.views[<size_t>k].has_lifetime:
                        event.min_keep_ms = min(event.min_keep_ms, self.c.views[<size_t>k].lifetime_idle_ms)
                    event.max_floor_ms = max(event.max_floor_ms, self.c.views[<size_t>k].floor_ms)

    def _rows_first(self, views):
        """(How many of these views are kept in rows, all of them with those first.)"""
        views = sorted(views, key=lambda view: self.plan.views[view].structure == Structure.COUNTMIN)
        return sum(self.plan.views[view].structure != Structure.COUNTMIN for view in views), views

    def _formulas(self):
        n_features = len(self.plan.features)
        self.formulas = []
        for i, derived in enumerate(self.plan.derived):
            _check(len(derived.operands) <= 4096, f"{derived.name}: more than 4,096 operands")
            _check(all(0 <= operand < n_features + i for operand in derived.operands),
                   f"{derived.name}: an operand is not a feature before it")
            self.formulas.append(CompiledFormula(derived))

    cdef int _derived(self, ServiceC* service, dict places) except -1:
        """`places` in the vector, of all features that the service reads by their index in all_features."""
        cdef CompiledFormula formula
        cdef DerivedC* out
        n_features = len(self.plan.features)
        # Their order is the plan's: operands first.
        derived = sorted(feature_index for feature_index in places if feature_index >= n_features)
        service.derived = <DerivedC*>self._array(len(derived), sizeof(DerivedC))
        for feature_index in derived:
            spec = self.plan.derived[feature_index - n_features]
            formula = self.formulas[<size_t>(feature_index - n_features)]
            out = &service.derived[service.n_derived]
            service.n_derived += 1
            out.program = formula.c
            out.n_operands = len(spec.operands)
            out.operands = self._indexes([places[operand] for operand in spec.operands], len(places),
                                         f"{spec.name}: operand")
            out.out = places[feature_index]
            out.by_zero = NAN if spec.by_zero is None else spec.by_zero
        return 0

    def _service(self, size_t index):
        cdef ServiceC* service = &self.c.services[index]
        cdef SlotC* slot
        cdef GroupC* group
        cdef size_t i, j
        spec = self.plan.served[index]
        n_features = len(self.plan.features)
        _check(all(0 <= feature < n_features + len(self.plan.derived) for feature in spec.features)
               and len(set(spec.features)) == len(spec.features),
               f"service {spec.name}: a feature is unknown or given twice")
        read = self.plan.needed_for(spec.features)
        _check(len(read) <= 4096, f"service {spec.name}: more than 4,096 features")
        by_entity = {}
        for out, feature_index in enumerate(read):
            if feature_index >= n_features:
                continue
            feature = self.plan.features[feature_index]
            _check(0 <= feature.view < len(self.plan.views), f"feature {feature.name}: unknown view")
            _check_duration(feature.window_ms, f"feature {feature.name}: window")
            views = by_entity.setdefault(self.plan.views[feature.view].entity, {})
            views.setdefault(feature.view, []).append((out, feature))
        service.width = len(spec.features)
        service.read_width = len(read)
        known = self.plan.all_features
        service.confidence = min([self.plan.confidence_of(known[f]) for f in spec.features], default=1.0)
        self._derived(service, {feature_index: out for out, feature_index in enumerate(read)})
        service.n_slots = len(by_entity)
        service.slots = <SlotC*>self._array(len(by_entity), sizeof(SlotC))
        service.slot_of_entity = <int16_t*>self._array(len(self.plan.entities), sizeof(int16_t))
        for i in range(len(self.plan.entities)):
            service.slot_of_entity[i] = -1
        for i, (entity, views) in enumerate(by_entity.items()):
            slot = &service.slots[i]
            slot.entity = entity
            service.slot_of_entity[<size_t>entity] = i
            slot.n_groups, order = self._rows_first(views)
            slot.n_all = len(order)
            slot.groups = <GroupC*>self._array(len(order), sizeof(GroupC))
            for j, view in enumerate(order):
                items = views[view]
                group = &slot.groups[j]
                group.view = view
                items.sort(key=lambda item: (item[1].window_ms == 0, item[1].window_ms, item[0]))
                group.before = self._items([item for item in items if item[1].exclude_self], view)
                group.n_before = sum(1 for item in items if item[1].exclude_self)
                group.after = self._items([item for item in items if not item[1].exclude_self], view)
                group.n_after = len(items) - group.n_before

    cdef ItemC* _items(self, list items, size_t view) except NULL:
        cdef ItemC* out = <ItemC*>self._array(len(items), sizeof(ItemC))
        cdef size_t i
        for i, (place, feature) in enumerate(items):
            column = feature.column
            _check(column is None or 0 <= column < self.c.views[view].n_columns,
                   f"feature {feature.name}: column")
            out[i].window_ms = feature.window_ms
            out[i].out = place
            out[i].column = NO_COLUMN if column is None else column
            out[i].aggregate = int(feature.aggregate)
            self._check_parts(feature, &self.c.views[view], out[i].column)
        return out

    cdef int _check_parts(self, feature, ViewC* view, size_t column_index) except -1:
        """A feature reads only what its view, and its column, keeps."""
        cdef ColumnC* column = NULL if column_index == NO_COLUMN else &view.columns[column_index]
        aggregate = feature.aggregate
        if view.structure == STRUCTURE_COUNTMIN:
            _check(aggregate == (Aggregate.SUM if view.n_values else Aggregate.COUNT) and column == NULL
                   and 0 < feature.window_ms <= view.keep_ms and not feature.exclude_self,
                   f"feature {feature.name}: its view's sketch keeps no {aggregate.name}")
            return 0
        structure = Structure.LOG
        if aggregate == Aggregate.DISTINCT:
            structure = Structure.DISTINCT
        elif aggregate in (Aggregate.DECAYED_COUNT, Aggregate.DECAYED_SUM, Aggregate.DECAYED_MEAN):
            structure = Structure.DECAYED
        elif aggregate in (Aggregate.TOP_SHARE, Aggregate.TOP_ENTROPY, Aggregate.HOUR_ENTROPY):
            structure = Structure.TOP
        _check(view.structure == int(structure)
               and (view.decayed.sums or aggregate not in (Aggregate.DECAYED_SUM, Aggregate.DECAYED_MEAN))
               and (structure != Structure.TOP
                    or (view.n_values == 0) == (aggregate == Aggregate.HOUR_ENTROPY)),
               f"feature {feature.name}: its view keeps no {aggregate.name}")
        if view.structure != STRUCTURE_LOG:
            _check(column == NULL and feature.window_ms > 0, f"feature {feature.name}: column or window")
            return 0
        plain = (Aggregate.COUNT, Aggregate.SINCE_FIRST, Aggregate.SINCE_LAST)
        if column == NULL:
            _check(aggregate in plain, f"feature {feature.name} needs a column")
            _check(feature.window_ms != 0 or view.has_lifetime,
                   f"feature {feature.name}: view keeps no lifetime")
            return 0
        kept = True
        if aggregate in (Aggregate.SUM, Aggregate.MEAN):
            kept = column.sum_at != 0
        if aggregate == Aggregate.STDDEV:
            kept = column.moments_at != 0
        if aggregate in (Aggregate.FIRST, Aggregate.SINCE_FIRST):
            kept = column.first_at != 0
        if aggregate in (Aggregate.LAST, Aggregate.SINCE_LAST):
            kept = column.last_at != 0
        if aggregate in (Aggregate.MEAN, Aggregate.MIN, Aggregate.MAX, Aggregate.STDDEV, Aggregate.FIRST,
                         Aggregate.LAST):
            kept = kept and column.extremes_at != 0
        if aggregate in (Aggregate.INTERVAL_MEAN, Aggregate.INTERVAL_CV):
            kept = column.gaps_at != 0 and feature.window_ms != 0
            plain += (Aggregate.INTERVAL_MEAN, Aggregate.INTERVAL_CV)
        _check(kept and (aggregate in plain or column.value >= 0),
               f"feature {feature.name}: its column keeps no {aggregate.name}")
        _check(feature.window_ms != 0 or view.has_lifetime, f"feature {feature.name}: view keeps no lifetime")
        return 0
