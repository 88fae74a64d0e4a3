package cli

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
)

// ArrayStatus is the data plane at a glance.
type ArrayStatus struct {
	IQN      string          `json:"iqn"` // of its target
	PID      int             `json:"pid"`
	Started  time.Time       `json:"started"`
	LUNs     int             `json:"luns"`
	Pools    []Pool          `json:"pools"`
	Portals  []TargetPortal  `json:"portals"`
	Sessions []TargetSession `json:"sessions"`
	// Problems are what an operator should look at, one line each.
	Problems []string `json:"problems"`
}

// TargetPortal is where iSCSI is served, and its portal group.
type TargetPortal struct {
	Address string `json:"address"`
	Group   uint16 `json:"group"`
}

// TargetSession is an initiator that is logged in.
type TargetSession struct {
	Initiator string    `json:"initiator"`
	Target    string    `json:"target,omitempty"` // none in a discovery session
	From      string    `json:"from"`
	Since     time.Time `json:"since"`
}

func (a *app) arrayShowCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "show",
		Short: "Show the array's pools, portals, sessions and problems",
		Long: `Show the array that runs: its pools with their room (SIZE and FREE are the file
system's, or the pool's own limit where that is less; PROVISIONED is what they
would need if all volumes in them were written), the portals that iSCSI is served
on with their portal groups, who is logged in, and what needs a look.`,
		Example: `  cleave array show
  cleave array show -o json | jq -r '.problems[]'`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.withStorage(func(s Storage) error {
				st, err := s.Status(c.Context())
				if err != nil {
					return err
				}
				return a.print(arrayResult(st))
			})
		},
	}
}

func arrayResult(st ArrayStatus) result {
	r := result{names: []string{st.IQN}, value: struct {
		Version int `json:"version"`
		ArrayStatus
	}{1, st}}
	r.text = func(w io.Writer, p *paper) error {
		fmt.Fprintf(w, "%-10s %s\n%-10s %d, since %s\n%-10s %d\n", "target", printable(st.IQN), "process", st.PID, clock(st.Started), "luns", st.LUNs)
		pools := table{head: []string{"POOL", "HEALTH", "SIZE", "FREE", "LIMIT", "USED", "PROVISIONED", "REFLINK", "DIRECTORY", "REASON"}}
		for _, x := range st.Pools {
			limit := ""
			if x.Limit > 0 {
				limit = size(x.Limit)
			}
			pools.add(x.Name, x.Health, size(x.Size), size(x.Free), limit, size(x.Used), size(x.Provisioned), yes(x.Reflink), x.Dir, x.Reason)
		}
		section(w, p, pools)
		portals := table{head: []string{"PORTAL", "GROUP"}}
		for _, x := range st.Portals {
			portals.add(x.Address, fmt.Sprint(x.Group))
		}
		section(w, p, portals)
		sessions := table{head: []string{"SESSION OF", "FROM", "SINCE", "KIND"}}
		for _, x := range st.Sessions {
			kind := "normal"
			if x.Target == "" {
				kind = "discovery"
			}
			sessions.add(x.Initiator, x.From, clock(x.Since), kind)
		}
		section(w, p, sessions)
		problems := table{head: []string{"PROBLEM"}}
		for _, x := range st.Problems {
			problems.add(x)
		}
		section(w, p, problems)
		return nil
	}
	return r
}
