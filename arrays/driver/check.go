package driver

import (
	"context"
	"fmt"
	"strconv"
	"strings"
)

// Checker tells an operator, before the next set and not in it, what that would
// be refused: calls without permission, limits that have no room for it, parts
// that are broken. next are the volumes that the set would split; where there are
// none, each of the array's volumes counts, or one where it doesn't list them.
//
// Nothing is changed. What can't be told without a change is Unchecked, and its
// detail says so. An error is for an array that does not answer at all; one call
// that is refused is a finding. Without it, doctor shows what Describe says and
// whether the array answers that.
type Checker interface {
	Check(ctx context.Context, next []VolumeID) ([]Finding, error)
}

// Finding is one thing that was looked at. Its texts are one line each, without
// secrets.
type Finding struct {
	Area   Area   `json:"area"`
	Check  string `json:"check"` // what was looked at: "take a snapshot", "pool ssd"
	Result Result `json:"result"`
	Detail string `json:"detail"`
	// Try is what to do about it; a sentence without a full stop.
	Try string `json:"try,omitempty"`
	// Limit is set where numbers stand behind it.
	Limit *Limit `json:"limit,omitempty"`
}

// Area is what a finding is about.
type Area string

const (
	AreaReach      Area = "reach"      // it answers
	AreaPermission Area = "permission" // calls, and whether they are refused
	AreaCapability Area = "capability" // what it can do here
	AreaLimit      Area = "limit"      // room, counts and quotas
	AreaHealth     Area = "health"     // what is broken or out of sync
)

// Result of a finding.
type Result string

const (
	OK        Result = "ok"
	Warning   Result = "warning" // the next set may do, with less than could be had
	Failed    Result = "failed"  // the next set is refused
	Unchecked Result = "unknown" // it could not be told
)

// Limit is how much there is of something.
type Limit struct {
	Unit string `json:"unit"` // "bytes", "snapshots", …
	Used int64  `json:"used"`
	Most int64  `json:"most"` // -1: no limit
	Next int64  `json:"next"` // what the next set needs
}

// Fits reports whether the next set's need is left.
func (l Limit) Fits() bool { return l.Most < 0 || l.Next <= l.Most-l.Used }

// String is the limit in words: "12 of 100 snapshots used, 88 left, the next set
// needs 2".
func (l Limit) String() string {
	amount := func(n int64) string {
		if l.Unit == "bytes" {
			return Bytes(n)
		}
		return strconv.FormatInt(n, 10)
	}
	unit := " " + l.Unit
	if l.Unit == "bytes" {
		unit = ""
	}
	var b strings.Builder
	if l.Most < 0 {
		fmt.Fprintf(&b, "%s%s used, without a limit", amount(l.Used), unit)
	} else {
		fmt.Fprintf(&b, "%s of %s%s used, %s left", amount(l.Used), amount(l.Most), unit, amount(max(l.Most-l.Used, 0)))
	}
	fmt.Fprintf(&b, ", the next set needs %s", amount(l.Next))
	return b.String()
}

// Room is the finding about a limit: failed where the next set doesn't fit, with
// what to try then, and a warning where less than a tenth would be left.
func Room(check string, l Limit, try string) Finding {
	f := Finding{Area: AreaLimit, Check: check, Result: OK, Detail: l.String(), Limit: &l}
	switch {
	case !l.Fits():
		f.Result, f.Try = Failed, try
	case l.Most >= 0 && l.Most-l.Used-l.Next < l.Most/10:
		f.Result, f.Try = Warning, try
	}
	return f
}

// Bytes is a size for people, in the largest unit that keeps it at least 1.
func Bytes(n int64) string {
	for i, unit := range []string{"TiB", "GiB", "MiB", "KiB"} {
		if shift := 40 - 10*i; n >= 1<<shift {
			return strings.TrimSuffix(strconv.FormatFloat(float64(n)/float64(int64(1)<<shift), 'f', 1, 64), ".0") + " " + unit
		}
	}
	return strconv.FormatInt(n, 10) + " B"
}
