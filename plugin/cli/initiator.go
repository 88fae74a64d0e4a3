package cli

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
)

func (a *app) initiatorCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "initiator",
		Short: "Say which initiators may log in, and with which secret",
		Long: `The initiators that the array's iSCSI target knows. Which LUNs one sees is said
where volumes and snapshots are exposed.`,
		Example: `  cleave initiator add iqn.1993-08.org.debian:01:host1 --chap-user host1 --chap-secret-file /etc/cleave/host1.secret
  cleave initiator list`,
	}
	c.AddCommand(a.initiatorAddCommand(), a.initiatorListCommand(), a.initiatorRemoveCommand())
	return c
}

func (a *app) initiatorAddCommand() *cobra.Command {
	var i Initiator
	var secretFile, mutualFile string
	c := &cobra.Command{
		Use:   "add IQN",
		Short: "Let an initiator log in",
		Long: `Let an initiator log in, with CHAP where a user and a secret are given. Secrets
are in files, never on the command line: 12 to 256 bytes, a newline at the end is
left out (RFC 7143 section 9.2.1). The data plane reads the files at each of its
starts, so they stay where they are.`,
		Example: `  cleave initiator add iqn.1993-08.org.debian:01:host1
  cleave initiator add iqn.1993-08.org.debian:01:host1 --chap-user host1 --chap-secret-file host1.secret`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			iqns, err := initiators(args)
			if err != nil {
				return err
			}
			i.IQN = iqns[0]
			if secretFile, _, err = readSecret("--chap-secret-file", i.User, secretFile); err != nil {
				return err
			}
			if mutualFile, _, err = readSecret("--mutual-secret-file", i.Mutual, mutualFile); err != nil {
				return err
			}
			return a.withStorage(func(s Storage) error {
				if err := s.AddInitiator(c.Context(), i, secretFile, mutualFile); err != nil {
					return err
				}
				_, err := fmt.Fprintln(a.Out, i.IQN)
				return err
			})
		},
	}
	f := c.Flags()
	f.StringVar(&i.User, "chap-user", "", "CHAP name of the initiator")
	f.StringVar(&secretFile, "chap-secret-file", "", "file with its secret")
	f.StringVar(&i.Mutual, "mutual-user", "", "CHAP name by which the target proves itself (mutual CHAP)")
	f.StringVar(&mutualFile, "mutual-secret-file", "", "file with the target's secret")
	c.MarkFlagsRequiredTogether("chap-user", "chap-secret-file")
	c.MarkFlagsRequiredTogether("mutual-user", "mutual-secret-file")
	return c
}

func (a *app) initiatorListCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List initiators, their sessions and what they see",
		Long:    `List the initiators that may log in. Secrets are never shown.`,
		Example: `  cleave initiator list`,
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.withStorage(func(s Storage) error {
				is, err := s.Initiators(c.Context())
				if err != nil {
					return err
				}
				var names []string
				for _, i := range is {
					names = append(names, i.IQN)
				}
				return a.print(result{value: list("initiators", is), names: names, text: func(w io.Writer, p *paper) error {
					t := table{head: []string{"IQN", "CHAP", "SESSIONS", "LUNS"}}
					for _, i := range is {
						chap := i.User
						if i.Mutual != "" {
							chap += ", mutual " + i.Mutual
						}
						t.add(i.IQN, chap, fmt.Sprint(i.Sessions), strings.Join(i.LUNs, ","))
					}
					p.draw(w, t)
					return nil
				}})
			})
		},
	}
}

func (a *app) initiatorRemoveCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "remove IQN",
		Short: "Take an initiator's right to log in away",
		Long: `Take an initiator's right to log in away and end its sessions. It is refused
while a LUN is exposed to it.`,
		Example: `  cleave initiator remove iqn.1993-08.org.debian:01:host1`,
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			iqns, err := initiators(args)
			if err != nil {
				return err
			}
			return a.withStorage(func(s Storage) error {
				if err := s.RemoveInitiator(c.Context(), iqns[0]); err != nil {
					return err
				}
				_, err := fmt.Fprintln(a.Out, iqns[0])
				return err
			})
		},
	}
}
