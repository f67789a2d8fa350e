// libcni drives a plugin chain as a container runtime does, with the library that runtimes are built on.
//
//	libcni VERB CONFLIST CONTAINER NETNS [CAPABILITIES]
//
// VERB is validate, add, check, del or cached; CONFLIST a file; NETNS a path, may be empty for del; CAPABILITIES a
// JSON object, what a runtime passes as runtimeConfig. $CNI_PATH is where plugins are, $CNI_CACHE where results are
// kept between calls. A result is printed as JSON; an error as "code: message; details" with exit status 1.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		var refused *types.Error
		if errors.As(err, &refused) {
			fmt.Fprintf(os.Stderr, "%d: ", refused.Code)
		}
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(arguments []string) error {
	if len(arguments) < 4 || len(arguments) > 5 {
		return errors.New("usage: libcni VERB CONFLIST CONTAINER NETNS [CAPABILITIES]")
	}
	list, err := libcni.ConfListFromFile(arguments[1])
	if err != nil {
		return err
	}
	runtime := &libcni.RuntimeConf{
		ContainerID: arguments[2],
		NetNS:       arguments[3],
		IfName:      "eth0",
		Args:        [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "default"}, {"K8S_POD_NAME", arguments[2]}},
	}
	if len(arguments) == 5 {
		if err := json.Unmarshal([]byte(arguments[4]), &runtime.CapabilityArgs); err != nil {
			return err
		}
	}
	plugins := filepath.SplitList(os.Getenv("CNI_PATH"))
	cni := libcni.NewCNIConfigWithCacheDir(plugins, os.Getenv("CNI_CACHE"), nil)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	switch arguments[0] {
	case "validate":
		capabilities, err := cni.ValidateNetworkList(ctx, list)
		if err != nil {
			return err
		}
		return json.NewEncoder(os.Stdout).Encode(capabilities)
	case "add":
		return show(cni.AddNetworkList(ctx, list, runtime))
	case "check":
		return cni.CheckNetworkList(ctx, list, runtime)
	case "del":
		return cni.DelNetworkList(ctx, list, runtime)
	case "cached":
		return show(cni.GetNetworkListCachedResult(list, runtime))
	default:
		return fmt.Errorf("unknown verb %q", arguments[0])
	}
}

func show(result types.Result, err error) error {
	if err != nil {
		return err
	}
	if result == nil {
		_, err = fmt.Println("null")
		return err
	}
	return result.Print()
}
