package cli

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// units of sizes, largest first; all are powers of 1024.
var units = []struct {
	name  string
	shift uint
}{{"TiB", 40}, {"GiB", 30}, {"MiB", 20}, {"KiB", 10}, {"B", 0}}

// parseSize reads "20GiB", "20G" or "1.5TiB" as bytes; a number alone is bytes.
// G and GB mean GiB as well: storage of a power of ten has no use here.
func parseSize(s string) (int64, error) {
	bad := usagef("size %.40q: want a number with a unit, as in 512MiB, 20GiB or 1.5TiB", s)
	digits := strings.TrimRightFunc(s, unicode.IsLetter)
	unit := strings.ToUpper(strings.TrimSpace(s[len(digits):]))
	shift, found := uint(0), unit == ""
	for _, u := range units {
		full := strings.ToUpper(u.name)
		if unit == full || unit == full[:1] || unit == full[:1]+"B" {
			shift, found = u.shift, true
			break
		}
	}
	digits = strings.TrimSpace(digits)
	if !found || digits == "" {
		return 0, bad
	}
	if n, err := strconv.ParseInt(digits, 10, 64); err == nil {
		if n < 0 || n > math.MaxInt64>>shift {
			return 0, bad
		}
		return n << shift, nil
	}
	f, err := strconv.ParseFloat(digits, 64)
	n := f * float64(int64(1)<<shift)
	if err != nil || !(n >= 0) || n >= math.MaxInt64 || n != math.Trunc(n) {
		return 0, bad
	}
	return int64(n), nil
}

// size prints bytes for people, in the largest unit that keeps it at least 1.
func size(n int64) string {
	for _, u := range units {
		if n >= 1<<u.shift && u.shift > 0 {
			s := strconv.FormatFloat(float64(n)/float64(int64(1)<<u.shift), 'f', 1, 64)
			return strings.TrimSuffix(s, ".0") + " " + u.name
		}
	}
	return fmt.Sprintf("%d B", n)
}

// clock prints a time for people: RFC 3339 in UTC, to the second.
func clock(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format(time.RFC3339)
}

// fine prints a time of day to the millisecond, for timelines.
func fine(t time.Time) string { return t.UTC().Format("15:04:05.000Z") }

// short prints a duration to three figures or so.
func short(d time.Duration) string {
	switch {
	case d < 0:
		return "-" + short(-d)
	case d < 10*time.Microsecond:
		return d.String()
	case d < time.Millisecond:
		return d.Round(time.Microsecond).String()
	case d < time.Second:
		return d.Round(100 * time.Microsecond).String()
	case d < time.Minute:
		return d.Round(10 * time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}

// printable keeps what came from a guest, an array or a file from steering the
// terminal: control characters are shown, not sent.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' {
			return ' '
		}
		if !unicode.IsPrint(r) {
			return unicode.ReplacementChar
		}
		return r
	}, s)
}
