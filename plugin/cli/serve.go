package cli

import "github.com/spf13/cobra"

func (a *app) serveCommand() *cobra.Command {
	o := ServeOptions{}
	c := &cobra.Command{
		Use:   "serve",
		Short: "Run the control plane: snapshot sets, journal, API",
		Long: `Run the control plane: it carries out snapshot sets, keeps their journal and
answers the other commands on its control socket. It runs until SIGINT or
SIGTERM. Killing it stalls no I/O; what it was doing is undone at its next start,
and a VM that it had paused is resumed by a guard of its own.

With --with-array it starts ` + "`cleave array`" + ` as a process of its own, unless one is
running already.`,
		Example: `  cleave serve --config /etc/cleave/cleave.yaml
  cleave serve --config cleave.yaml --with-array`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			log, err := a.logger()
			if err != nil {
				return err
			}
			if o.Config == "" {
				return hint(usagef("--config is missing"), "examples/cleave.yaml is one to start from")
			}
			if c.Flags().Changed("socket") || a.env("CLEAVE_SOCKET") != "" {
				o.Socket = a.socket
			}
			return a.parts.RunServe(c.Context(), o, log)
		},
	}
	f := c.Flags()
	f.StringVar(&o.Config, "config", a.env("CLEAVE_CONFIG"), "configuration file (YAML)")
	f.BoolVar(&o.WithArray, "with-array", false, "start the data plane too, if it is not running")
	return c
}
