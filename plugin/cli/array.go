package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

func (a *app) arrayCommand() *cobra.Command {
	o := ArrayOptions{}
	var pools, limits []string
	c := &cobra.Command{
		Use:   "array",
		Short: "Run the data plane: the embedded array and its iSCSI target",
		Long: `Run the data plane: the embedded array, whose volumes are plain files mirrored
over pool directories, and the iSCSI target that serves them. It does nothing
else, so that production I/O depends on nothing else. It runs until SIGINT or
SIGTERM; after a restart its volumes are served again first, and initiators ride
through it.

Flags win over the configuration. It listens on the portals it is told, and
nowhere else. A portal may be put in a portal group by a number after a comma:
the multipath software of hosts takes each group for a port of its own (ALUA).

The commands below ask the array that runs, except for rescan.`,
		Example: `  cleave array --config /etc/cleave/cleave.yaml
  cleave array --state /var/lib/cleave/array --pool a=/srv/a --pool b=/srv/b --portal 192.0.2.10:3260
  cleave array --config /etc/cleave/cleave.yaml --portal 192.0.2.10:3260 --portal 198.51.100.10:3260,2
  cleave array show`,
		RunE: func(c *cobra.Command, _ []string) error {
			log, err := a.logger()
			if err != nil {
				return err
			}
			if o.Pools, err = poolFlags(pools); err != nil {
				return err
			}
			if o.PoolLimits, err = limitFlags(limits); err != nil {
				return err
			}
			if c.Flags().Changed("array-socket") || a.env("CLEAVE_ARRAY_SOCKET") != "" {
				o.Socket = a.arraySocket
			}
			return a.parts.RunArray(c.Context(), o, log)
		},
	}
	f := c.Flags()
	f.StringVar(&o.Config, "config", a.env("CLEAVE_CONFIG"), "configuration file (YAML)")
	f.StringVar(&o.State, "state", "", "directory of the array's own records; not in a pool")
	f.StringArrayVar(&pools, "pool", nil, "pool as NAME=DIRECTORY, one for each disk; repeat it")
	f.StringArrayVar(&o.Portals, "portal", nil, "ADDRESS:PORT[,GROUP] to serve iSCSI on, in portal group 1 unless it says another; repeat it for several")
	f.StringArrayVar(&limits, "pool-limit", nil, "what may be used of a pool, as NAME=SIZE; repeat it")
	f.StringVar(&o.IQN, "iqn", "", "name of the iSCSI target")
	if a.parts.Arrays != nil {
		c.AddCommand(a.arrayListCommand())
	}
	if a.parts.Storage != nil {
		c.AddCommand(a.arrayShowCommand(), a.arrayEventsCommand())
	}
	if a.parts.Rescan != nil {
		c.AddCommand(a.arrayRescanCommand())
	}
	return c
}

// poolFlags reads NAME=DIRECTORY.
func poolFlags(flags []string) (map[string]string, error) {
	if len(flags) == 0 {
		return nil, nil
	}
	pools := map[string]string{}
	for _, f := range flags {
		name, dir, ok := strings.Cut(f, "=")
		if !ok || name == "" || dir == "" {
			return nil, usagef("--pool %q: want NAME=DIRECTORY", f)
		}
		if _, twice := pools[name]; twice {
			return nil, usagef("--pool %q: there is a pool of that name already", f)
		}
		pools[name] = dir
	}
	return pools, nil
}

// limitFlags reads NAME=SIZE.
func limitFlags(flags []string) (map[string]int64, error) {
	limits := map[string]int64{}
	for _, f := range flags {
		name, text, ok := strings.Cut(f, "=")
		if !ok || name == "" {
			return nil, usagef("--pool-limit %q: want NAME=SIZE", f)
		}
		n, err := parseSize(text)
		if err != nil {
			return nil, fmt.Errorf("--pool-limit %q: %w", f, err)
		}
		limits[name] = n
	}
	return limits, nil
}
