package assemble

import (
	"cmp"
	"context"

	"github.com/cleave-san/cleave/orchestrator"
)

// withPolicy fills in what a request leaves open, before the engine does.
type withPolicy struct {
	orchestrator.Service
	policy PolicyConfig
}

func (s withPolicy) Create(ctx context.Context, r orchestrator.Request) (orchestrator.Set, error) {
	r.Attempts = cmp.Or(r.Attempts, s.policy.Attempts)
	r.GuestLimit = cmp.Or(r.GuestLimit, s.policy.GuestLimit)
	r.PauseLimit = cmp.Or(r.PauseLimit, s.policy.PauseLimit)
	r.Lease = cmp.Or(r.Lease, s.policy.Lease)
	return s.Service.Create(ctx, r)
}
