package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"time"
)

// inserter inserts k = 1, 2, 3, … into the table numbers, one commit each, and
// writes one line per commit to record: "k begin commit", both times in
// nanoseconds since 1970 by the guest's clock, taken before the statement was
// sent and after its commit was confirmed. A number that is not in the record
// may still have been committed: the confirmation may have been lost.
type inserter struct {
	socket string
	record io.Writer
	pause  time.Duration
	now    func() time.Time
}

const createNumbers = `CREATE TABLE IF NOT EXISTS numbers (
	k bigint PRIMARY KEY, begin_ns bigint NOT NULL, filler text NOT NULL DEFAULT repeat('x', 100))`

// run goes on from the largest number in the table until ctx ends or PostgreSQL
// fails it.
func (l inserter) run(ctx context.Context) error {
	db, err := dialPostgres(ctx, l.socket, "postgres", "postgres")
	if err != nil {
		return err
	}
	defer db.close()
	if _, err := db.query(createNumbers); err != nil {
		return fmt.Errorf("making the table: %w", err)
	}
	rows, err := db.query("SELECT coalesce(max(k), 0) FROM numbers")
	if err != nil {
		return fmt.Errorf("finding the last number: %w", err)
	}
	if len(rows) != 1 || len(rows[0]) != 1 {
		return fmt.Errorf("finding the last number: answer %q", rows)
	}
	k, err := strconv.ParseInt(rows[0][0], 10, 64)
	if err != nil {
		return fmt.Errorf("finding the last number: %w", err)
	}
	for ctx.Err() == nil {
		k++
		began := l.now().UnixNano()
		if _, err := db.query(fmt.Sprintf("INSERT INTO numbers (k, begin_ns) VALUES (%d, %d)", k, began)); err != nil {
			return fmt.Errorf("inserting %d: %w", k, err)
		}
		if _, err := fmt.Fprintf(l.record, "%d %d %d\n", k, began, l.now().UnixNano()); err != nil {
			return fmt.Errorf("recording %d: %w", k, err)
		}
		if err := wait(ctx, l.pause); err != nil {
			return err
		}
	}
	return ctx.Err()
}
