package cli

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"
)

// Array is a storage array as far as it answers.
type Array struct {
	Name   string `json:"name"`
	Type   string `json:"type"`
	Socket string `json:"socket,omitempty"`
	// State is "ok", "problems" if something needs a look, or "no answer".
	State string `json:"state"`
	// Volumes, LUNs and Sessions count what it has.
	Volumes  int    `json:"volumes"`
	LUNs     int    `json:"luns"`
	Sessions int    `json:"sessions"`
	Detail   string `json:"detail,omitempty"` // the first problem, or why there is no answer

	// Err is why there is no answer; nil if there is one.
	Err error `json:"-"`
}

// States of an Array.
const (
	ArrayOK       = "ok"
	ArrayProblems = "problems"
	ArraySilent   = "no answer"
)

func (a *app) arrayListCommand() *cobra.Command {
	var config string
	c := &cobra.Command{
		Use:   "list",
		Short: "List the arrays that are configured, and whether they answer",
		Long: `List the arrays of a configuration, each asked how it is. Without a
configuration it is the one at the array's control socket. State is ok, problems
(` + "`cleave array show`" + ` has them all) or no answer.

The exit status is 3 if some array does not answer, and 7 if none does.`,
		Example: `  cleave array list
  cleave array list --config /etc/cleave/cleave.yaml -o json`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			found, err := a.parts.Arrays(c.Context(), config, a.arraySocket)
			if err != nil {
				return err
			}
			if err := a.print(arraysResult(found)); err != nil {
				return err
			}
			var silent []error
			for _, x := range found {
				if x.Err != nil {
					silent = append(silent, x.Err)
				}
			}
			return several(len(found)-len(silent), silent)
		},
	}
	c.Flags().StringVar(&config, "config", a.env("CLEAVE_CONFIG"), "configuration file (YAML)")
	return c
}

func arraysResult(found []Array) result {
	var names []string
	for _, x := range found {
		names = append(names, x.Name)
	}
	return result{value: list("arrays", found), names: names, text: func(w io.Writer, p *paper) error {
		t := table{head: []string{"NAME", "TYPE", "STATE", "VOLUMES", "LUNS", "SESSIONS", "+SOCKET", "DETAIL"}}
		for _, x := range found {
			count := func(n int) string {
				if x.Err != nil {
					return ""
				}
				return fmt.Sprint(n)
			}
			t.add(x.Name, x.Type, x.State, count(x.Volumes), count(x.LUNs), count(x.Sessions), x.Socket, x.Detail)
		}
		p.draw(w, t)
		return nil
	}}
}
