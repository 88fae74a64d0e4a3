package cli

import (
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"
)

// Mask says that an initiator sees a LUN.
type Mask struct {
	Initiator string `json:"initiator"` // "*": every one without a mask of its own
	LUN       uint64 `json:"lun"`
	Access    string `json:"access"`   // rw, ro
	Sessions  int    `json:"sessions"` // in which it is logged in now
	Kind      string `json:"kind"`     // volume, snapshot, view
	Of        string `json:"of"`       // the volume's or snapshot's ID, the view's name
	Volume    string `json:"volume,omitempty"`
	NAA       string `json:"naa"`
}

func (a *app) maskCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "mask",
		Short: "Say who sees which LUN, and who may write",
		Long: `Masks say which initiator sees which LUN of the array's iSCSI target under which
number, and whether it may write. Nothing is seen by anybody without one.`,
		Example: `  cleave mask list --volume db
  cleave mask set db --initiator iqn.1993-08.org.debian:01:host1 --access ro`,
	}
	c.AddCommand(a.maskListCommand(), a.maskSetCommand())
	return c
}

func (a *app) maskListCommand() *cobra.Command {
	var initiator, volume string
	c := &cobra.Command{
		Use:   "list",
		Short: "List who sees which LUN",
		Long: `List who sees which LUN: volumes, snapshots and recovered views, under which
number, whether it may be written, and in how many sessions the initiator is
logged in now. The initiator * stands for every one without a mask of its own.`,
		Example: `  cleave mask list
  cleave mask list --initiator iqn.1993-08.org.debian:01:host1`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if initiator != "" && initiator != "*" {
				iqns, err := initiators([]string{initiator})
				if err != nil {
					return err
				}
				initiator = iqns[0]
			}
			return a.withStorage(func(s Storage) error {
				ms, err := s.Masks(c.Context())
				if err != nil {
					return err
				}
				return a.print(masksResult(slices.DeleteFunc(ms, func(m Mask) bool {
					return initiator != "" && m.Initiator != initiator || volume != "" && m.Volume != volume && m.Of != volume
				})))
			})
		},
	}
	f := c.Flags()
	f.StringVar(&initiator, "initiator", "", "only what this initiator was given, by its IQN")
	f.StringVar(&volume, "volume", "", "only those of this volume and of its snapshots")
	return c
}

func (a *app) maskSetCommand() *cobra.Command {
	var initiator, access string
	c := &cobra.Command{
		Use:   "set VOLUME|SNAPSHOT --initiator IQN --access rw|ro|none",
		Short: "Say what one initiator may do with a volume or snapshot",
		Long: `Say what one initiator may do with a volume, by name, or a snapshot, by ID: read
and write, only read, or not see it. Others keep what they have. It holds from the
next command on, for sessions that exist as well.

The LUN is made with its first initiator and taken away with its last. It is
there only after its mask.`,
		Example: `  cleave mask set db --initiator iqn.1993-08.org.debian:01:host1 --access rw
  cleave mask set db --initiator iqn.1993-08.org.debian:01:backup --access ro
  cleave mask set db --initiator iqn.1993-08.org.debian:01:backup --access none`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			iqns, err := initiators([]string{initiator})
			if err != nil {
				return err
			}
			switch access {
			case "rw", "ro", "none":
			default:
				return usagef("--access %.40q: want rw, ro or none", access)
			}
			return a.withStorage(func(s Storage) error {
				if err := s.SetMask(c.Context(), args[0], iqns[0], access); err != nil {
					return err
				}
				ms, err := s.Masks(c.Context())
				if err != nil {
					return err
				}
				return a.print(masksResult(slices.DeleteFunc(ms, func(m Mask) bool {
					return m.Of != args[0] && (m.Kind != "volume" || m.Volume != args[0])
				})))
			})
		},
	}
	f := c.Flags()
	f.StringVar(&initiator, "initiator", "", "IQN of the initiator (required)")
	f.StringVar(&access, "access", "", "rw, ro or none (required)")
	for _, name := range []string{"initiator", "access"} {
		if err := c.MarkFlagRequired(name); err != nil {
			panic(err) // a flag that is not there: a slip in this function
		}
	}
	return c
}

func masksResult(ms []Mask) result {
	var names []string
	for _, m := range ms {
		names = append(names, m.Initiator)
	}
	slices.Sort(names)
	return result{value: list("masks", ms), names: slices.Compact(names), text: func(w io.Writer, p *paper) error {
		t := table{head: []string{"INITIATOR", "LUN", "ACCESS", "SESSIONS", "KIND", "VOLUME", "OF", "+NAA"}}
		for _, m := range ms {
			t.add(m.Initiator, fmt.Sprint(m.LUN), m.Access, fmt.Sprint(m.Sessions), m.Kind, m.Volume, m.Of, m.NAA)
		}
		p.draw(w, t)
		return nil
	}}
}
