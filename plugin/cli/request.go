package cli

import (
	"github.com/spf13/cobra"

	"github.com/cleave-san/cleave/orchestrator"
)

// requestFlags are the flags by which a snapshot set is asked for; snapshot
// create and exec share them.
type requestFlags struct {
	request orchestrator.Request
	level   string
	to      []string
}

func (r *requestFlags) register(c *cobra.Command) {
	f := c.Flags()
	f.StringArrayVar(&r.request.VMs, "vm", nil, "VM to snapshot; repeat it for several at one instant of the array (required)")
	f.StringVar(&r.level, "level", "none", "least level that will do for each VM: application, filesystem, saved or crash; none: the best that each can reach now")
	f.StringArrayVar(&r.to, "to", nil, "IQN of an initiator, or name of a host in the configuration, that shall see the LUNs; repeat it for several")
	f.BoolVar(&r.request.ExposeDirty, "expose-dirty", false, "let them see the splits as they came off as well, read-only")
	f.BoolVar(&r.request.NewIdentity, "new-identity", false, "let them see LUNs with other GPT or MBR ids, PV and VG UUIDs and VG names than the originals")
	f.BoolVar(&r.request.AllowUnmirrored, "allow-unmirrored", false, "consent to production running on one copy until the resync")
	f.BoolVar(&r.request.DeleteSplits, "delete-splits", false, "drop the splits in the end instead of resyncing them")
	f.DurationVar(&r.request.GuestLimit, "guest-limit", 0, "after so long a guest that is not done undoes its part (default 2m)")
	f.DurationVar(&r.request.PauseLimit, "pause-limit", 0, "a paused VM is resumed after so long, whatever happens (default 10s)")
	f.IntVar(&r.request.Attempts, "attempts", 0, "how often to try when a VM changes its state in the middle (default 3)")
	f.DurationVar(&r.request.Lease, "lease", 0, "the set ends by itself after so long (default 24h)")
	f.StringVar(&r.request.Note, "note", "", "words of your own, kept in the set's document")
	if err := c.MarkFlagRequired("vm"); err != nil {
		panic(err) // a flag that is not there: a slip in this function
	}
}

// read checks the flags and returns the request.
func (r *requestFlags) read() (orchestrator.Request, error) {
	level, err := orchestrator.ParseLevel(r.level)
	if err != nil {
		return orchestrator.Request{}, usagef("--level: %w", err)
	}
	req := r.request
	req.Level = level
	if req.Initiators, err = hostsOrInitiators(r.to); err != nil {
		return orchestrator.Request{}, err
	}
	if req.GuestLimit < 0 || req.PauseLimit < 0 || req.Lease < 0 || req.Attempts < 0 {
		return orchestrator.Request{}, usagef("limits, lease and attempts can't be negative")
	}
	return req, nil
}
