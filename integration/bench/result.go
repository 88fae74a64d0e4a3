package bench

import (
	"fmt"
	"math"
	"slices"
)

// Result is one row of the results file.
type Result struct {
	Name     string  `json:"name"`
	Unit     string  `json:"unit"`
	Better   Better  `json:"better"`
	Ours     float64 `json:"ours"`
	PeerName string  `json:"peer_name"`
	Peer     float64 `json:"peer"`
	Ratio    float64 `json:"ratio"` // median of the runs; above 1 is better for us
	Goal     float64 `json:"goal"`  // the smallest ratio asked for; 0: none
	Runs     int     `json:"runs"`
	Min      float64 `json:"min"` // of the runs' ratios
	Max      float64 `json:"max"`
	// Busy is the share of the processors that others used just before.
	Busy float64 `json:"busy"`
	// Why says why there are no figures; empty if there are.
	Why string `json:"why,omitempty"`
}

// OK reports whether the row was measured and meets its goal.
func (r Result) OK() bool { return r.Why == "" && r.Ratio >= r.Goal }

// ratio is ours against theirs, above 1 if ours is better.
func (b Better) ratio(ours, peer float64) float64 {
	if b == Lower {
		ours, peer = peer, ours
	}
	return ours / peer
}

// summarise makes a result of the figures of all runs of a row.
func summarise(row Row, peerName string, ours, peer []float64) (Result, error) {
	res := Result{Name: row.Name, Unit: row.Unit, Better: row.Better, PeerName: peerName, Goal: row.Goal, Runs: len(ours)}
	if row.Limit != 0 {
		res.PeerName = "goal"
		peer = slices.Repeat([]float64{row.Limit}, len(ours))
	}
	ratios := make([]float64, len(ours))
	for i := range ours {
		for _, x := range []float64{ours[i], peer[i]} {
			if !(x > 0) || math.IsInf(x, 0) {
				return Result{}, fmt.Errorf("%s: a run gave %v %s", row.Name, x, row.Unit)
			}
		}
		ratios[i] = row.Better.ratio(ours[i], peer[i])
	}
	res.Ours, res.Peer, res.Ratio = median(ours), median(peer), median(ratios)
	res.Min, res.Max = slices.Min(ratios), slices.Max(ratios)
	return res, nil
}

// mean makes the result of a mean of rows; rows that are missing or failed make
// it fail.
func mean(m Mean, results []Result) Result {
	res := Result{Name: m.Name, Unit: "x", Better: Higher, PeerName: fmt.Sprintf("mean of %d rows", len(m.Of)), Goal: m.Goal}
	var rows []Result
	for _, name := range m.Of {
		i := slices.IndexFunc(results, func(r Result) bool { return r.Name == name && r.Why == "" })
		if i < 0 {
			res.Why = fmt.Sprintf("row %s has no figures", name)
			return res
		}
		rows = append(rows, results[i])
	}
	sum := 0.0
	res.Runs, res.Min, res.Max = rows[0].Runs, rows[0].Ratio, rows[0].Ratio
	for _, r := range rows {
		sum += math.Log(r.Ratio)
		res.Runs, res.Busy = min(res.Runs, r.Runs), max(res.Busy, r.Busy)
		res.Min, res.Max = min(res.Min, r.Ratio), max(res.Max, r.Ratio)
	}
	res.Ratio, res.Peer = math.Exp(sum/float64(len(rows))), 1
	res.Ours = res.Ratio
	return res
}

func median(xs []float64) float64 {
	s := slices.Sorted(slices.Values(xs))
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}

// merge puts fresh results in place of older ones of the same name, drops those
// whose name nobody knows any more, and sorts as order says.
func merge(old, fresh []Result, order []string) []Result {
	by := map[string]Result{}
	for _, r := range slices.Concat(old, fresh) {
		by[r.Name] = r
	}
	out := []Result{}
	for _, n := range order {
		if r, ok := by[n]; ok {
			out = append(out, r)
		}
	}
	return out
}
