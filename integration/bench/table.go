package bench

import (
	"fmt"
	"io"
	"strconv"
)

const columns = "%-44s %12s %12s %-8s %7s %15s %6s  %-4s %s"

var header = fmt.Sprintf(columns, "row", "ours", "peer", "unit", "ratio", "min-max", "goal", "", "peer")

// line is a result as a line of the table.
func line(r Result) string {
	if r.Why != "" {
		return fmt.Sprintf(columns, r.Name, "-", "-", r.Unit, "-", "-", goal(r), "FAIL", r.PeerName+": "+r.Why)
	}
	mark := "ok"
	switch {
	case !r.OK():
		mark = "MISS"
	case r.Goal == 0:
		mark = ""
	}
	return fmt.Sprintf(columns, r.Name, figure(r.Ours), figure(r.Peer), r.Unit, fmt.Sprintf("%.2f", r.Ratio),
		fmt.Sprintf("%.2f-%.2f", r.Min, r.Max), goal(r), mark, r.PeerName)
}

func goal(r Result) string {
	if r.Goal == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f", r.Goal)
}

// figure writes a number with about four digits.
func figure(x float64) string {
	switch {
	case x >= 1000:
		return strconv.FormatFloat(x, 'f', 0, 64)
	case x >= 10:
		return strconv.FormatFloat(x, 'f', 1, 64)
	}
	return strconv.FormatFloat(x, 'f', 3, 64)
}

// verdict ends the table, with an error if not every row is a success.
func verdict(w io.Writer, done []Result) error {
	failed, missed := 0, 0
	for _, r := range done {
		switch {
		case r.Why != "":
			failed++
		case !r.OK():
			missed++
		}
	}
	fmt.Fprintf(w, "# %d rows: %d without figures, %d below their goals\n", len(done), failed, missed)
	switch {
	case len(done) == 0:
		return fmt.Errorf("no row has such a name")
	case failed+missed > 0:
		return fmt.Errorf("%d of %d rows are no success", failed+missed, len(done))
	}
	return nil
}
