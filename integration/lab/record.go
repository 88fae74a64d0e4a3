package lab

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"time"
)

// Commit is one line of the record that `guestload insert` keeps outside the
// guest's disks. Times are the guest's clock.
type Commit struct {
	K         int64
	Begin     time.Time // before the statement was sent
	Committed time.Time // after its commit was confirmed
}

// ReadRecord reads a record. A last line without its newline is not yet written.
func ReadRecord(path string) ([]Commit, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	return parseRecord(b)
}

func parseRecord(b []byte) ([]Commit, error) {
	b = b[:bytes.LastIndexByte(b, '\n')+1]
	var commits []Commit
	s := bufio.NewScanner(bytes.NewReader(b))
	for s.Scan() {
		var c Commit
		var began, committed int64
		if _, err := fmt.Sscanf(s.Text(), "%d %d %d", &c.K, &began, &committed); err != nil {
			return nil, fmt.Errorf("lab: record, line %d: %.60q: %w", len(commits)+1, s.Text(), err)
		}
		c.Begin, c.Committed = time.Unix(0, began), time.Unix(0, committed)
		commits = append(commits, c)
	}
	return commits, s.Err()
}

// LargestGap is the longest time between two commits that follow each other,
// among those committed from `from` to `to`; a zero time means no limit.
func LargestGap(commits []Commit, from, to time.Time) time.Duration {
	var gap time.Duration
	for i := 1; i < len(commits); i++ {
		c := commits[i]
		if (from.IsZero() || !c.Committed.Before(from)) && (to.IsZero() || !commits[i-1].Committed.After(to)) {
			gap = max(gap, c.Committed.Sub(commits[i-1].Committed))
		}
	}
	return gap
}

// Numbers is what the table of `guestload insert` holds.
type Numbers struct{ Count, Min, Max int64 }

// Check compares a recovered table with the record of what was committed, for a
// snapshot that was taken somewhere between began and ended (guest's clock):
// the numbers have no holes, all that was committed before began is there, and
// nothing is that was begun after ended. In between, either is right.
func (n Numbers) Check(record []Commit, began, ended time.Time) error {
	if n.Count == 0 {
		return fmt.Errorf("the table is empty")
	}
	if n.Min != 1 || n.Count != n.Max {
		return fmt.Errorf("holes: %d numbers from %d to %d", n.Count, n.Min, n.Max)
	}
	for _, c := range record {
		if c.Committed.Before(began) && c.K > n.Max {
			return fmt.Errorf("%d was committed %v before the snapshot began and is missing (last: %d)",
				c.K, began.Sub(c.Committed), n.Max)
		}
		if c.Begin.After(ended) && c.K <= n.Max {
			return fmt.Errorf("%d was begun %v after the snapshot ended and is there (last: %d)",
				c.K, c.Begin.Sub(ended), n.Max)
		}
	}
	return nil
}
