-- The views people query. `stored_*` are the Parquet files as they are; `selected` holds the requests asked for.
CREATE VIEW exchanges AS FROM {exchanges};
CREATE VIEW judgments AS FROM {judgments};
CREATE VIEW labels AS FROM {labels};
CREATE VIEW feedback AS FROM {feedback};

-- One row a request both arms answered, failures included. A replayed answer is there where the arm gave no other.
-- Two narrow joins keys and nothing computed: a query reads only the columns it names.
CREATE VIEW pairs AS
SELECT
    control.request_id,
    control.experiment,
    control.unit_id,
    control.started_at,
    control.prompt,
    COLUMNS(control.*) AS 'control_\0',
    COLUMNS(treatment.*) AS 'treatment_\0'
FROM {paired} AS control
JOIN {paired} AS treatment
  ON treatment.experiment = control.experiment AND treatment.request_id = control.request_id
WHERE control.arm = 'control' AND treatment.arm = 'treatment'
  AND control.role <> 'replay' AND treatment.role <> 'replay';
