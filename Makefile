# A thin wrapper of dev.py, which needs nothing but Python; `python3 dev.py TASK` does the same without make.
PYTHON ?= python3
TASKS = help setup demo test check bench clean
RUN = @command -v $(PYTHON) >/dev/null || { \
	echo "make: no $(PYTHON) here; on Debian and Ubuntu: apt install python3 python3-venv" >&2; exit 1; }; \
	$(PYTHON) dev.py $@

.PHONY: $(TASKS)
$(TASKS):
	$(RUN)

bench-%:
	$(RUN)
