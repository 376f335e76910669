-- When a run ended, by the clock of its machine, in Unix milliseconds; the end of
-- time for one that has not. The projection is made anew with it.
ALTER TABLE runs ADD COLUMN ended INTEGER NOT NULL DEFAULT 9223372036854775807;
CREATE INDEX runs_ended ON runs (ended);
