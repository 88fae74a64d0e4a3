package qmp

import "context"

// Status is the answer of query-status (qapi/run-state.json).
type Status struct {
	Status  string `json:"status"` // "running", "paused", "shutdown", "io-error", …
	Running bool   `json:"running"`
}

// QueryStatus asks what the VM is doing.
func (c *Conn) QueryStatus(ctx context.Context) (Status, error) {
	var s Status
	err := c.Do(ctx, "query-status", nil, &s)
	s.Status = clip(s.Status)
	return s, err
}

// Stop stops the VM's processors. QEMU answers after in-flight disk requests
// have been completed.
func (c *Conn) Stop(ctx context.Context) error { return c.Do(ctx, "stop", nil, nil) }

// Cont lets the VM run (again).
func (c *Conn) Cont(ctx context.Context) error { return c.Do(ctx, "cont", nil, nil) }
